"""A server that this process starts, and that ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from megatron_gopd.servers import guard

SHOWN_LINES, STOP_S = 8, 5.0


class ServerProcess:
    """A command in a session of its own, what it prints in `log`."""

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._guard = subprocess.Popen(
                [sys.executable, guard.__file__, *command],
                env=dict(environment),
                stdin=subprocess.PIPE,  # held open: the guard ends everything when it closes
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guard.poll()

    def stop(self) -> None:
        """End every process of the session: politely first, so that SGLang removes its shared memory."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            self._guard.terminate()
            self._guard.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._guard.pid, signal.SIGKILL)  # also what a dead leader left behind
        self._guard.wait()
        self._guard.stdin.close()

    def last_words(self) -> str:
        return end_of(self.log)


def end_of(log: Path) -> str:
    """The end of a log, for a message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    lines = [line[:300] for line in text.splitlines() if line.strip()]
    return "\n  ".join([f"the end of {log}:", *lines[-SHOWN_LINES:]])


def free_port(host: str = "127.0.0.1") -> int:
    """A port of an address of this machine that nothing listens on now."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.bind(address)
        return probe.getsockname()[1]
