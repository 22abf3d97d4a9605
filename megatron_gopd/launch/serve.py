"""python -m megatron_gopd.launch.serve --into FOLDER --deadline S -- COMMAND: a server, announced when healthy.

FOLDER, shared by all nodes, is the rendezvous: NODE.url appears there once the server answers GET /health, and the
server ends when `stop` does. COMMAND is one argument, in which {port} and {host} stand for where to listen.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from megatron_gopd.runs.atomic import write_text
from megatron_gopd.servers.environment import of_no_rank
from megatron_gopd.srun import this_node
from megatron_gopd.terminal import say


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_) -> None:
        """A server that leads elsewhere is not healthy."""


# a proxy is not meant for nodes of the job
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())


def serve(command: str, folder: Path, deadline_s: float) -> int:
    """Start the server, announce it, and hold it until `stop` appears; returns an exit code.

    0: stopped as asked; 1: the server ended by itself, or was not healthy within `deadline_s`.
    """
    node, port = this_node(), _free_port()
    words = [word.replace("{port}", str(port)).replace("{host}", node) for word in shlex.split(command)]
    say(f"{node}, GPUs {os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}: {shlex.join(words)}", flush=True)
    # a session of its own: SLURM's signals to the step must not end it under a trainer that still finishes its step
    server = subprocess.Popen(words, env=of_no_rank(os.environ), start_new_session=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        end = time.monotonic() + deadline_s
        while not _is_healthy(node, port):
            if server.poll() is not None or time.monotonic() > end or (folder / "stop").exists():
                asked = f"http://{node}:{port}/health"
                say(f"{asked} did not answer within {deadline_s:g} s; exit code {server.poll()}", flush=True)
                return 1
            time.sleep(0.5)
        write_text(folder / f"{node}.url", f"http://{node}:{port}\n")
        while not (folder / "stop").exists():
            if server.poll() is not None:
                say(f"{node}: the server ended with exit code {server.returncode}", flush=True)
                return 1
            time.sleep(0.5)
        return 0
    finally:
        _end(server)


def _is_healthy(node: str, port: int) -> bool:
    """By the name that others ask for it by: a server may listen there alone, or not there."""
    try:
        with DIRECTLY.open(f"http://{node}:{port}/health", timeout=30) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _end(server: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("command")
    options = parser.parse_args()
    return serve(options.command, options.into, options.deadline)


if __name__ == "__main__":
    sys.exit(main())
