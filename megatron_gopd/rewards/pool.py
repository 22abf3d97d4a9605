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
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal, Self

from pebble import ProcessExpired, ProcessPool

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code
from megatron_gopd.rewards.grade import Grade
from megatron_gopd.rewards.graders import GRADERS
from megatron_gopd.rewards.sandbox import SandboxError

Grader = Callable[[str, str], float | Grade]
MAX_CHARACTERS = 100_000  # of a response, from its end, where the answer stands
WORKER_MEMORY = 4 << 30  # bytes that grading may take
STARTS = 3  # of the workers in one call, before it gives up
SANDBOX_GRACE_S = 10.0  # after the time of all tests: the sandbox ends itself before
GRACE_S = 5.0  # after the time limit, when a worker that nobody stopped ends itself


class GraderPool:
    """`workers` processes that grade; an answer has `timeout_s` seconds, then its worker is killed and replaced.

    The clock of an answer starts when a worker that is done with its imports takes it up. Workers start at the first
    `grade`, by spawn: they hold nothing of the calling process (no torch, no locks), and a script that uses a pool
    needs the usual `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        kind: Literal["exact", "math", "code"],
        workers: int | None = None,
        timeout_s: float | None = None,
        sandbox: Sandbox | None = None,
    ):
        """Code is run in `sandbox`, which sets its time and by default takes every core; the others take 2 and 5 s."""
        if kind == "code":
            sandbox = sandbox or Sandbox()
            self._grader: Grader = partial(code, sandbox=sandbox)
            workers = workers or sandbox.workers or _cores()
            timeout_s = timeout_s or sandbox.seconds + SANDBOX_GRACE_S
        else:
            self._grader = GRADERS[kind]
        self._missing = Grade(0.0, "no tests" if kind == "code" else "no label")
        self._workers = workers or 2
        self._timeout_s = timeout_s or 5.0
        self._pool: ProcessPool | None = None
        self._closed = False
        self._lock = threading.Lock()

    def grade(self, responses: Sequence[str], labels: Sequence[str | None]) -> list[Grade]:
        """One Grade for each response, in order; any thread may call. The labels of code are its tests.

        Raises ValueError where the lengths differ, RuntimeError where the pool is closed or its workers cannot start,
        SandboxError where the kernel refuses the sandbox: that is no fault of an answer.
        """
        rows = list(zip(responses, labels, strict=True))
        grades = {row: self._missing for row, (_, label) in enumerate(rows) if not (label and label.strip())}
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
    if isinstance(error, SandboxError):
        raise error
    died = isinstance(error, ProcessExpired)
    if isinstance(error, TimeoutError) or (died and error.exitcode == -signal.SIGALRM):
        return Grade(0.0, "timeout")
    return Grade(0.0, f"crash: the worker died, exit code {error.exitcode}" if died else f"crash: {error}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(grader: Grader) -> None:
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


def _grade(grader: Grader, response: str, label: str, limit_s: float) -> Grade:
    """Runs in a worker. The timer ends a worker whose pool was killed and cannot."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        grade = grader(response, label)
        return grade if isinstance(grade, Grade) else Grade(grade)
    except SandboxError:
        raise
    except Exception as error:  # noqa: BLE001  as text: not every exception survives the way back
        return Grade(0.0, f"crash: {type(error).__name__}: {error}"[:200])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
