"""Real gloo ranks for tests: one torchrun launch, with a hard timeout that ends every process of it."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]


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

    `function`, its arguments and its result are pickled or found by name, so its module must import on its own. A
    failed assert on any rank fails the test.

    Returns:
        What the function returned on rank 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        call, result = Path(folder, "call"), Path(folder, "result")
        call.write_bytes(pickle.dumps((inspect.getsourcefile(function), function.__name__, arguments)))
        torchrun(count, __file__, call, result, timeout=timeout)
        return pickle.loads(result.read_bytes())


def _first_failure(output: str) -> int | None:
    """A rank's exit code, from torchrun's report of the root cause: torchrun itself ends with 1 whatever it was."""
    reported = re.search(r"Root Cause.*?exitcode\s*:\s*(-?\d+)", output, re.DOTALL)
    return int(reported[1]) if reported else None


def _kill_all(process: subprocess.Popen) -> None:
    """torchrun starts every rank in a session of its own, so the ranks are found by descent."""
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        for one in [launcher, *launcher.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def _serve(call: str, result: str) -> None:
    """The rank's side of `on_ranks`."""
    import torch.distributed as dist

    from megatron_gopd.ranks import ranks

    file, name, arguments = pickle.loads(Path(call).read_bytes())
    with ranks():
        value = runpy.run_path(file)[name](**arguments)
        if dist.get_rank() == 0:
            Path(result).write_bytes(pickle.dumps(value))
        dist.barrier()


if __name__ == "__main__":
    _serve(*sys.argv[1:])
