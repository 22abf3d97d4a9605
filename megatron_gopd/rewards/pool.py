"""Graders in worker processes, where a poisoned answer costs only itself."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, Self

from pebble import ProcessExpired, ProcessPool

from megatron_gopd.rewards.graders import GRADERS

MAX_CHARACTERS = 100_000  # of a response, from its end, where the answer stands
WORKER_MEMORY = 4 << 30  # bytes that grading may take
STARTS = 3  # of the workers in one call, before it gives up
GRACE_S = 5.0  # after the time limit, when a worker that nobody stopped ends itself


@dataclass(frozen=True)
class Grade:
    """`score` in [0, 1]; 0 whenever there is a problem: "timeout", "crash: ..." or "no label"."""

    score: float
    problem: str | None = None


class GraderPool:
    """`workers` processes that grade; an answer has `timeout_s` seconds, then its worker is killed and replaced.

    The clock of an answer starts when a worker that is done with its imports takes it up. Workers start at the first
    `grade`, by spawn: they hold nothing of the calling process (no torch, no locks), and a script that uses a pool
    needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, kind: Literal["exact", "math"], workers: int = 2, timeout_s: float = 5.0):
        self._grader = GRADERS[kind]
        self._workers = workers
        self._timeout_s = timeout_s
        self._pool: ProcessPool | None = None
        self._closed = False
        self._lock = threading.Lock()

    def grade(self, responses: Sequence[str], labels: Sequence[str | None]) -> list[Grade]:
        """One Grade for each response, in order; any thread may call.

        Raises ValueError where the lengths differ, and RuntimeError where the pool is closed or its workers cannot
        start.
        """
        rows = list(zip(responses, labels, strict=True))
        grades = {row: Grade(0.0, "no label") for row, (_, label) in enumerate(rows) if not (label and label.strip())}
        for _ in range(STARTS):
            waiting = [row for row in range(len(rows)) if row not in grades]
            if not waiting:
                break
            # strict=False: a pool that broke took only the first rows
            graded = zip(waiting, self._run([rows[row] for row in waiting]), strict=False)
            grades |= {row: _grade_of(future) for row, future in graded if _is_graded(future)}
        if len(grades) < len(rows):
            raise RuntimeError(f"the grading workers died {STARTS} times before they took up an answer")
        return [grades[row] for row in range(len(rows))]

    def close(self) -> None:
        """End the workers at once; a `grade` still running in another thread raises. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._end_workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, rows: list[tuple[str, str]]) -> list[Future]:
        """Grade until every row is done or the pool is no more."""
        pool = self._running()
        futures: list[Future] = []
        with suppress(RuntimeError):  # the pool broke or closed meanwhile
            for response, label in rows:
                args = (self._grader, response[-MAX_CHARACTERS:], label, self._timeout_s + GRACE_S)
                futures.append(pool.schedule(_grade, args=args, timeout=self._timeout_s))
        while wait(futures, timeout=1).not_done and pool.active:
            pass
        return futures

    def _running(self) -> ProcessPool:
        """The pool; a new one at the start, and where a worker that died idle broke the old one."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader pool is closed")
            if self._pool is None or not self._pool.active:
                self._end_workers()
                spawn = get_context("spawn")
                self._pool = ProcessPool(self._workers, 0, _start_worker, (self._grader,), spawn)
            return self._pool

    def _end_workers(self) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None


def _is_graded(future: Future) -> bool:
    return future.done() and not isinstance(future.exception(), BrokenProcessPool)


def _grade_of(future: Future) -> Grade:
    error = future.exception()
    if error is None:
        return future.result()
    died = isinstance(error, ProcessExpired)
    if isinstance(error, TimeoutError) or (died and error.exitcode == -signal.SIGALRM):
        return Grade(0.0, "timeout")
    return Grade(0.0, f"crash: the worker died, exit code {error.exitcode}" if died else f"crash: {error}")


def _start_worker(grader: Callable[[str, str], float]) -> None:
    """Runs in a new worker, before any answer's clock."""
    os.setpgid(0, 0)  # a signal meant for the run, from a terminal or a batch system, must not spoil a grade
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait for the end of 9**9**9**9
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = taken + WORKER_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    grader(r"\boxed{1}", "1")  # imports and compiles what grading needs


def _grade(grader: Callable[[str, str], float], response: str, label: str, limit_s: float) -> Grade:
    """Runs in a worker. The timer ends a worker whose pool was killed and cannot."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return Grade(grader(response, label))
    except Exception as error:  # noqa: BLE001  as text: not every exception survives the way back
        return Grade(0.0, f"crash: {type(error).__name__}: {error}"[:200])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
