"""Graders in worker processes, where a poisoned answer costs only itself."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Self

from pebble import ProcessExpired, ProcessPool

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.cores import processes_for, run_on, usable_cores
from megatron_gopd.errors import STOP_SIGNALS, UserError
from megatron_gopd.rewards.code import code
from megatron_gopd.rewards.custom import CustomReward
from megatron_gopd.rewards.grade import Grade
from megatron_gopd.rewards.graders import GRADERS
from megatron_gopd.rewards.sandbox import SandboxError, remove_those_of_the_dead

Grader = Callable[..., float | Grade]
CRASH = "crash: "  # how the problem of an answer begins that broke its grader
MAX_CHARACTERS = 100_000  # of a response, from its end, where the answer stands
WORKER_MEMORY = 4 << 30  # bytes that grading may take
STARTING_S = 10.0  # of a worker: so long its pool waits for it before it ends
STARTS = 3  # of the workers in one call, before it gives up
SANDBOX_GRACE_S = 10.0  # after the time of all tests: the sandbox ends itself before
CUSTOM_S = 30.0  # for a function of the user's own
GRACE_S = 5.0  # after the time limit, when a worker that nobody stopped ends itself


class GraderPool:
    """`workers` processes that grade; an answer has `timeout_s` seconds, then its worker is killed and replaced.

    The clock of an answer starts when a worker that is done with its imports takes it up. Workers start at the first
    `grade`, by spawn: they hold nothing of the calling process (no torch, no locks), and a script that uses a pool
    needs the usual `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        kind: str,
        workers: int | None = None,
        timeout_s: float | None = None,
        sandbox: Sandbox | None = None,
        cores: frozenset[int] | None = None,
    ):
        """`kind`: exact, math, code, or FILE.py:FUNCTION.

        Code is run in `sandbox`, which sets its time and by default takes every core; the others take half the cores,
        2 to 16 workers, and 5 s, a function 30 s. `cores`: what workers may run on; default: what this process may.
        """
        self._cores = cores or usable_cores()
        custom = CustomReward.parse(kind)
        if kind == "code":
            sandbox = sandbox or Sandbox()
            self._grader: Grader = partial(code, sandbox=sandbox)
            workers = workers or sandbox.workers or processes_for(self._cores)
            timeout_s = timeout_s or sandbox.wall_seconds + SANDBOX_GRACE_S
        else:
            self._grader = custom or GRADERS[kind]
            timeout_s = timeout_s or (CUSTOM_S if custom else None)
        self._missing = None if custom else Grade(0.0, "no tests" if kind == "code" else "no label")
        self.workers = workers or min(16, max(2, len(self._cores) // 2))
        self._timeout_s = timeout_s or 5.0
        self._pool: ProcessPool | None = None
        self._closed = False
        self._lock = threading.Lock()

    def grade(
        self, responses: Sequence[str], labels: Sequence[str | None], rows: Sequence[dict] | None = None
    ) -> list[Grade]:
        """One Grade for each response, in order; any thread may call. The labels of code are its tests.

        `rows` are what a function is told beside them. Without a label (or tests) only a function grades.

        Raises ValueError where the lengths differ, RuntimeError where the pool is closed or its workers cannot start,
        SandboxError where the kernel refuses the sandbox: that is no fault of an answer.
        """
        tasks = list(zip(responses, labels, rows or [{}] * len(responses), strict=True))
        unlabelled = [task for task, (_, label, _) in enumerate(tasks) if not (label and label.strip())]
        grades = {task: self._missing for task in unlabelled if self._missing}
        for _ in range(STARTS):
            waiting = [task for task in range(len(tasks)) if task not in grades]
            if not waiting:
                break
            # strict=False: a pool that broke took only the first tasks
            graded = zip(waiting, self._run([tasks[task] for task in waiting]), strict=False)
            grades |= {task: _grade_of(future) for task, future in graded if _is_graded(future)}
        if len(grades) < len(tasks):
            raise RuntimeError(f"the grading workers died {STARTS} times before they took up an answer")
        return [grades[task] for task in range(len(tasks))]

    def close(self) -> None:
        """End the workers at once; a `grade` still running in another thread raises. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._end_workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, tasks: list[tuple[str, str | None, dict]]) -> list[Future]:
        """Grade until every task is done or the pool is no more."""
        futures: list[Future] = []
        with _held_back():
            pool = self._running()
            with suppress(RuntimeError):  # the pool broke or closed meanwhile
                for response, label, row in tasks:
                    args = (self._grader, response[-MAX_CHARACTERS:], label, row, self._timeout_s + GRACE_S)
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
                self._begun = spawn.Semaphore(0)
                start = (self._grader, self._cores, self._begun)
                self._pool = ProcessPool(self.workers, 0, _start_worker, start, spawn)
            return self._pool

    def _end_workers(self) -> None:
        if self._pool is not None:
            self._let_workers_begin()
            self._pool.stop()
            self._pool.join()
            self._pool = None
            remove_those_of_the_dead()

    def _let_workers_begin(self) -> None:
        """One that is still starting would look for what the pool takes with it, and say so on stderr."""
        end = time.monotonic() + STARTING_S
        for _ in range(self.workers if self._pool.active else 0):
            self._begun.acquire(timeout=max(0.0, end - time.monotonic()))


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
    return Grade(0.0, f"{CRASH}the worker died, exit code {error.exitcode}" if died else f"{CRASH}{error}")


@contextmanager
def _held_back() -> Iterator[None]:
    """What is started within, threads and their processes too, begins with the run's signals blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    """In a thread of a worker: a run that is ended at once leaves none that still grades."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _start_worker(grader: Grader, cores: frozenset[int], begun: Semaphore) -> None:
    """Runs in a new worker, before any answer's clock."""
    begun.release()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    run_on(cores)
    os.setpgid(0, 0)  # a signal meant for the run, from a terminal or a batch system, must not spoil a grade
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # forgets the one that was held back
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # a Python handler would wait for the end of 9**9**9**9
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = taken + WORKER_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    if isinstance(grader, CustomReward):
        grader.load()
    else:
        grader(r"\boxed{1}", "1")  # imports and compiles what grading needs


def _grade(grader: Grader, response: str, label: str | None, row: dict, limit_s: float) -> Grade:
    """Runs in a worker. The timer ends a worker whose pool was killed and cannot."""
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        grade = grader(response, label, **row)
        return grade if isinstance(grade, Grade) else Grade(grade)
    except SandboxError:
        raise
    except Exception as error:  # noqa: BLE001  as text: not every exception survives the way back
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return Grade(0.0, f"{CRASH}{said}"[:400])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
