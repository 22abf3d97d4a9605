"""Real gloo ranks for tests, with a hard timeout that ends every process of them: torchrun's, or forked."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import connection, forkserver
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")  # imports once what takes a rank ten seconds to import
FORKS.set_forkserver_preload(["megatron_gopd.training.distill"])


def torchrun(count: int, *command: str | Path, timeout: float = 240, fails_with: int = 0) -> str:
    """Run `command` (a script and its arguments, or `-m`, a module, ...) on `count` ranks.

    Args:
        timeout: seconds, after which every process of the launch is killed and the test fails.
        fails_with: the exit code of the rank that is the first to fail; 0: every rank must succeed. Anything else
            fails the test, with the output of all ranks.

    Returns:
        stdout and stderr of all ranks, interleaved.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    arguments = [*launcher, "--nproc-per-node", str(count), *map(str, command)]
    environment = environment_of_ranks()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also on an interrupt or pytest's own timeout: no rank outlives its test
            _kill_all(process)
        log.seek(0)
        output = log.read()
    if code is None:
        raise AssertionError(f"{count} ranks did not end within {timeout} s:\n{output}")
    first = _first_failure(output) if code else 0
    if first != fails_with:
        raise AssertionError(f"the first of {count} ranks to end ended with {first}, not {fails_with}:\n{output}")
    return output


def environment_of_ranks() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def on_ranks(count: int, function: Callable, timeout: float = 240, **arguments):
    """Call a module-level `function(**arguments)` on `count` ranks, under an initialised process group.

    `function`, its arguments and its result are pickled, so its module must import on its own. A failed assert on any
    rank fails the test.

    Returns:
        What the function returned on rank 0.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _start_forking()
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result"), Path(folder, "log")
        log.touch()
        processes = [
            FORKS.Process(target=_serve, args=(_rank_of(rank, count, store.port), log, result, function, arguments))
            for rank in range(count)
        ]
        try:
            for process in processes:
                process.start()
            _wait(processes, timeout)
        finally:
            for process in processes:
                _kill_all(process)
        if any(process.exitcode for process in processes):
            codes = ", ".join(str(process.exitcode) for process in processes)
            raise AssertionError(f"{count} ranks ended with {codes} (within {timeout} s):\n{log.read_text()}")
        return pickle.loads(result.read_bytes())


def _start_forking() -> None:
    """The server that ranks are forked from sees the environment it was started in."""
    before = dict(os.environ)
    os.environ.update(environment_of_ranks())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _rank_of(rank: int, count: int, port: int) -> dict[str, str]:
    """A rank's environment, as torchrun makes it."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    store = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    return environment_of_ranks() | store | {name: str(number) for name, number in numbers.items()}


def _wait(processes: list, timeout: float) -> None:
    """Until all have ended, one has failed and the others have had their last words, or the time is over."""
    deadline = time.monotonic() + timeout
    while running := [process for process in processes if process.exitcode is None]:
        if any(process.exitcode for process in processes):
            deadline = min(deadline, time.monotonic() + 10)
        left = deadline - time.monotonic()
        if left <= 0 or not connection.wait([process.sentinel for process in running], left):
            return


def _first_failure(output: str) -> int | None:
    """A rank's exit code, from torchrun's report of the root cause: torchrun itself ends with 1 whatever it was."""
    reported = re.search(r"Root Cause.*?exitcode\s*:\s*(-?\d+)", output, re.DOTALL)
    return int(reported[1]) if reported else None


def _kill_all(process: subprocess.Popen | multiprocessing.Process) -> None:
    """Ranks, and what they started, are found by descent: torchrun starts every rank in a session of its own."""
    launched = isinstance(process, subprocess.Popen)
    if not (process.poll() is None if launched else process.is_alive()):
        return
    with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
        first = psutil.Process(process.pid)
        for one in [*first.children(recursive=True), first]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait() if launched else process.join()


def _serve(environment: dict[str, str], log: Path, result: Path, function: Callable, arguments: dict) -> None:
    """The rank's side of `on_ranks`."""
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    import torch.distributed as dist

    from megatron_gopd.ranks import ranks

    with ranks():
        value = function(**arguments)
        if dist.get_rank() == 0:
            result.write_bytes(pickle.dumps(value))
        dist.barrier()
