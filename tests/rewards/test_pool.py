from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from megatron_gopd.rewards import Grade, GraderPool
from megatron_gopd.rewards.graders import GRADERS

POISON = r"\boxed{9^{9^{9^9}}}"


def workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children()]


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


class Unpicklable(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def wicked(response: str, label: str) -> float:
    """A grader that answers can break: what sympy's bugs may do, at will."""
    if response == "feast":
        bytearray(8 << 30)
    if response == "die":
        os._exit(3)
    if response == "raise":
        raise Unpicklable("no", "reason")
    return 1.0


def wait_until(condition, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module")
def pool():
    with GraderPool("math", workers=2, timeout_s=3.0) as pool:
        yield pool


def test_grades_come_in_the_order_of_the_responses(pool):
    grades = pool.grade([r"\boxed{0.5}", r"\boxed{2}", r"\boxed{3}"], [r"\frac{1}{2}", "1", "3"])
    assert grades == [Grade(1.0), Grade(0.0), Grade(1.0)]


def test_a_poisoned_answer_costs_only_itself(pool):
    grades = pool.grade([r"\boxed{1}", POISON, *[r"\boxed{1}"] * 20], ["1"] * 22)
    assert [grade.problem for grade in grades] == [None, "timeout", *[None] * 20]
    assert sum(grade.score for grade in grades) == 21


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("feast", "crash: MemoryError: "),
        ("die", "crash: the worker died, exit code 3"),
        ("raise", "crash: Unpicklable: no: reason"),
    ],
)
def test_an_answer_that_breaks_its_worker_costs_only_itself(monkeypatch, answer, problem):
    monkeypatch.setitem(GRADERS, "exact", wicked)
    with GraderPool("exact") as pool:
        grades = pool.grade(["fine", answer, "fine"], ["1"] * 3)
    assert grades == [Grade(1.0), Grade(0.0, problem), Grade(1.0)]


@pytest.mark.parametrize("label", [None, "", " "])
def test_a_row_without_a_label_says_so(pool, label):
    assert pool.grade(["1"], [label]) == [Grade(0.0, "no label")]


def test_each_response_needs_its_label(pool):
    with pytest.raises(ValueError, match="zip"):
        pool.grade(["1", "2"], ["1"])


def test_the_answer_at_the_end_of_a_huge_response_counts(pool):
    assert pool.grade([r"\boxed{2}" + "x" * 10_000_000 + r"\boxed{1}"], ["1"]) == [Grade(1.0)]


def test_a_box_before_the_last_100_000_characters_is_not_read(pool):
    assert pool.grade([r"\boxed{1}" + "x" * 100_000], ["1"]) == [Grade(0.0)]


def test_two_threads_get_their_own_grades(pool):
    def grade(offset: int) -> list[float]:
        labels = [str(offset + row % 2) for row in range(50)]
        return [grade.score for grade in pool.grade([rf"\boxed{{{offset}}}"] * 50, labels)]

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(grade, [10, 20])) == [[1.0, 0.0] * 25] * 2


def test_the_clock_does_not_count_the_start_of_a_worker():
    with GraderPool("math", workers=1, timeout_s=0.2) as pool:  # the imports alone take longer
        assert pool.grade([r"\boxed{0.5}"], ["1/2"]) == [Grade(1.0)]


def test_no_worker_runs_before_the_first_answer_or_after_close():
    before = set(workers())
    pool = GraderPool("exact")
    assert set(workers()) == before
    pool.grade(["1"], ["1"])
    started = set(workers()) - before
    pool.close()
    assert len(started) == 2
    assert not any(alive(pid) for pid in started)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_workers_run_on_the_cores_they_are_given_whatever_this_process_is_bound_to():
    others, cores = set(workers()), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with GraderPool("exact", workers=1, cores=frozenset(cores)) as pool:
            pool.grade(["1"], ["1"])
            (worker,) = set(workers()) - others
            assert os.sched_getaffinity(worker) == cores
    finally:
        os.sched_setaffinity(0, cores)


def test_a_closed_pool_refuses():
    pool = GraderPool("exact")
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade(["1"], ["1"])


def test_close_ends_a_grade_that_is_still_running():
    pool = GraderPool("math", workers=1, timeout_s=60)
    pool.grade(["1"], ["1"])
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(pool.grade, [POISON], ["1"])
        time.sleep(0.5)
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            running.result(10)


CLOSED_EARLY = """
import threading, time
from megatron_gopd.rewards import GraderPool

if __name__ == "__main__":
    for after in (0.1, 0.2, 0.4):
        pool = GraderPool("exact", workers=2)
        grading = threading.Thread(target=lambda: pool.grade(["1"], ["1"]))
        grading.start()
        while not getattr(pool._pool, "active", False):
            time.sleep(0.01)
        time.sleep(after)
        pool.close()
        grading.join()
"""


def test_a_pool_that_ends_as_its_workers_begin_says_nothing(tmp_path):
    script = tmp_path / "early.py"
    script.write_text(CLOSED_EARLY)
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300).stderr
    assert "SemLock" not in said and "No such file" not in said


def test_a_worker_killed_at_work_costs_one_answer():
    others = set(workers())
    with GraderPool("math", workers=1, timeout_s=60) as pool, ThreadPoolExecutor(1) as thread:
        pool.grade(["1"], ["1"])
        (worker,) = set(workers()) - others
        idle = psutil.Process(worker).cpu_times().user
        running = thread.submit(pool.grade, [POISON, r"\boxed{1}"], ["1", "1"])
        assert wait_until(lambda: psutil.Process(worker).cpu_times().user > idle + 0.3)  # at the poison
        os.kill(worker, signal.SIGKILL)
        assert running.result(30) == [Grade(0.0, "crash: the worker died, exit code -9"), Grade(1.0)]


def test_a_worker_killed_idle_costs_nothing():
    others = set(workers())
    with GraderPool("exact", workers=1) as pool:
        pool.grade(["1"], ["1"])
        (worker,) = set(workers()) - others
        os.kill(worker, signal.SIGKILL)
        assert wait_until(lambda: not alive(worker))
        assert pool.grade(["2"], ["2"]) == [Grade(1.0)]


ORPHANED = f"""
import multiprocessing
from megatron_gopd.rewards import GraderPool, pool as module
module.GRACE_S = 1.0
pool = GraderPool("math", workers=2, timeout_s=1.0)
pool.grade(["1"], ["1"])
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
pool.grade([r"{POISON}"], ["1"])
"""


def test_a_killed_parent_leaves_no_worker():
    with subprocess.Popen([sys.executable, "-c", ORPHANED], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)  # one worker is at the poisoned answer, one is idle
        parent.kill()
    assert len(pids) == 2
    assert wait_until(lambda: not any(map(alive, pids)))


STRUCK = """
import signal
from megatron_gopd.rewards import GraderPool
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
print("listening", flush=True)
with GraderPool("math", workers=2) as pool:
    print(pool.grade([r"\\boxed{7}"], ["7"])[0].score)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_workers_start_while_a_batch_system_signals_the_run(number):
    command = [sys.executable, "-c", STRUCK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout.readline() == "listening\n"
        while run.poll() is None:
            os.killpg(run.pid, number)
            time.sleep(0.02)
        assert run.stdout.read() == "1.0\n"


@pytest.mark.parametrize(
    ("kind", "cores", "workers"), [("math", 2, 2), ("math", 24, 12), ("exact", 96, 16), ("code", 24, 24)]
)
def test_the_workers_of_a_pool_are_counted_by_its_cores(kind, cores, workers):
    assert GraderPool(kind, cores=frozenset(range(cores))).workers == workers
