"""One program at a time inside a jail: started, watched, ended."""

from __future__ import annotations

import fcntl
import os
import selectors
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from megatron_gopd.rewards.sandbox import view
from megatron_gopd.rewards.sandbox.clock import Clock
from megatron_gopd.rewards.sandbox.jail import Jail

TICK_S = 0.02
LOOK_EVERY_S, LOOK_AT_LAST_S = 0.05, 0.25  # at the time and memory that is taken
HEAVY_LOOKS, HEAVY_EVERY_S = 6, 0.05  # that find too much memory in turn, on a busy machine too
LOOKS_SHARE = 10  # so many times a look's own time passes till the next
MANY_FILES = 65_536  # descriptors that a child may have inherited
OUTPUT_SLACK = 1 << 20  # bytes a program may write beyond what is expected of it


@dataclass(frozen=True)
class Outcome:
    """How a program ended: by itself, with what the system calls its wait status, or with a problem that ended it."""

    output: bytes
    errors: bytes
    status: int | None = None
    problem: str | None = None

    @property
    def why(self) -> str | None:
        """What went wrong, in words; None for a program that ended with exit code 0."""
        if self.problem or self.status is None:
            return self.problem or "crash"
        code = os.waitstatus_to_exitcode(self.status)
        if code < 0:
            return f"ended by signal {-code}"
        last = self.errors.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
        return f"exit code {code}: {last}" if code else None


def start_python(jail: Jail, script: str, descriptors: dict[int, int]) -> int:
    """Fork and run a file of the jail's folder in a new Python; `descriptors`: see `start`."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": jail.scratch,
        "TMPDIR": jail.scratch,
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONINTMAXSTRDIGITS": "0",
        "PYTHONPATH": jail.packages,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    arguments = [view.PYTHON, "-B", "-s", f"{jail.folder}/{script}"]
    return start(jail, lambda: os.execve(view.PYTHON, arguments, environment), descriptors)


def start(jail: Jail, run: Callable[[], None], descriptors: dict[int, int]) -> int:
    """Fork a confined child that calls `run`; returns its pid.

    descriptors: theirs (0, 1, 2, ...) -> ours; it holds no others.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        jail.started = True
        return child
    try:
        os.setsid()
        moved = {
            theirs: fcntl.fcntl(ours, fcntl.F_DUPFD, 100) for theirs, ours in descriptors.items()
        }  # out of the way
        for theirs, ours in moved.items():
            os.dup2(ours, theirs)
        os.closerange(len(descriptors), MANY_FILES)
        jail.confine()
        run()
    except OSError as error:
        os.write(2, f"cannot start the program: {error}".encode())
    finally:
        os._exit(127)


def watch(jail: Jail, pid: int, outputs: tuple[int, int], clock: Clock, output_bytes: int) -> Outcome:
    """Read (output, errors) until the program `pid` has ended or broke a limit; close both, end all programs."""
    selector = selectors.DefaultSelector()
    captured: dict[int, bytearray] = {}
    for descriptor in outputs:
        os.set_blocking(descriptor, False)
        selector.register(descriptor, selectors.EVENT_READ)
        captured[descriptor] = bytearray()
    try:
        status, problem = _watch(jail, pid, selector, captured, clock, output_bytes)
    finally:
        selector.close()
        for descriptor in outputs:
            os.close(descriptor)
    return Outcome(*(bytes(captured[each]) for each in outputs), status, problem)


def _watch(jail, pid, selector, captured, clock: Clock, output_bytes: int) -> tuple[int | None, str | None]:
    look_at, heavy = time.monotonic() + LOOK_EVERY_S, 0
    while True:
        _read(selector, captured)
        if sum(map(len, captured.values())) > output_bytes:
            return None, "too much output"
        if (status := _reaped(pid)) is not None:
            _read(selector, captured)  # what it wrote before its end
            return status, None
        began = time.monotonic()
        if began < look_at:
            continue
        if clock.is_late(next(iter(captured.values()))):
            return None, "timeout"
        heavy = heavy + 1 if jail.has_too_much_memory() else 0
        if heavy == HEAVY_LOOKS:  # between vfork and exec, a child is as large as its parent, and is its parent
            return None, "too much memory"
        pause = min(max(LOOK_EVERY_S, LOOKS_SHARE * (time.monotonic() - began)), LOOK_AT_LAST_S)
        look_at = time.monotonic() + (HEAVY_EVERY_S if heavy else pause)


def _read(selector, captured: dict[int, bytearray]) -> None:
    """What is there to read, after waiting for it a moment."""
    if not selector.get_map():  # all closed: the end is near
        time.sleep(TICK_S / 10)
        return
    for key, _ in selector.select(TICK_S):
        with suppress(BlockingIOError):
            chunk = os.read(key.fd, 1 << 16)
            captured[key.fd] += chunk
            if not chunk:
                selector.unregister(key.fd)


def _reaped(wanted: int) -> int | None:
    """Collect every child that has ended; the wait status of `wanted` if it is among them."""
    found = None
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == wanted:
                found = status
    return found
