"""Child processes: so many at a time, each with a time limit, none left behind."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

NO_CAUSE = re.compile(r"ChildFailedError|torch/distributed/elastic|^\W*$|^\s")  # torchrun's, after the cause
CAUSE = re.compile(r"(\[rank\d+\]: *)?(error: |[\w.]*(Error|Exception|Interrupt)\b)")


class ChildError(Exception):
    """A child did not end as it should; the message is the last line of its error."""


class Children:
    """Starts them, at most `at_a_time` beside each other, in `environment`; what they print is in `logs`/NAME.log."""

    def __init__(self, at_a_time: int, environment: Mapping[str, str], logs: Path):
        self._at_a_time, self._environment, self._logs = at_a_time, dict(environment), logs
        self._free, self._turn = threading.Semaphore(at_a_time), threading.Lock()
        self._alive: set[subprocess.Popen] = set()
        self._lock, self._over = threading.Lock(), False
        logs.mkdir(parents=True, exist_ok=True)

    def python(
        self,
        name: str,
        *arguments: str | Path,
        timeout: float,
        alone: bool = False,
        extra: Mapping[str, str] | None = None,
        ends_with: int = 0,
    ) -> str:
        """Run `python *arguments` to its end; returns what it printed.

        Args:
            timeout: seconds, from its start.
            alone: with no other child beside it, so that what it measures is its own.
            extra: variables of its environment.
            ends_with: the exit code that is expected; -9 of one that kills itself.

        Raises:
            ChildError: it ended with another code, or not in time.
        """
        log = self._logs / f"{name}.log"
        with self._slots(self._at_a_time if alone else 1), log.open("w+") as output:
            process = self._start([sys.executable, *map(str, arguments)], self._environment | dict(extra or {}), output)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                kill(process)
                self._alive.discard(process)
        said = log.read_text(errors="replace")
        if code is None:
            raise ChildError(f"did not end within {timeout:g} s; last: {last_error(said)}")
        if code != ends_with:
            raise ChildError(f"ended with {code}: {last_error(said)}")
        return said

    def end(self) -> None:
        """End all that run, and start no other."""
        with self._lock:
            self._over = True
            for process in list(self._alive):
                kill(process)

    def _start(self, command: list[str], environment: dict[str, str], output) -> subprocess.Popen:
        with self._lock:
            if self._over:
                raise ChildError("interrupted")
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
            self._alive.add(process)
            return process

    @contextlib.contextmanager
    def _slots(self, count: int) -> Iterator[None]:
        with self._turn:  # whoever needs all of them is not overtaken for ever
            for _ in range(count):
                self._free.acquire()
        try:
            yield
        finally:
            self._free.release(count)


def kill(process: subprocess.Popen) -> None:
    """End it with all that it started: found by descent, for torchrun and servers open sessions of their own."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        for one in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def last_error(said: str) -> str:
    """The line of an output that names the cause, else its last one."""
    lines = [line for line in said.splitlines() if not NO_CAUSE.search(line)]
    causes = [line for line in lines if CAUSE.match(line)]
    return (causes or lines or ["it printed nothing"])[-1][:500]
