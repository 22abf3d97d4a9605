"""Programs that mean harm are contained, and none is graded right."""

from __future__ import annotations

import json
import os
import socket
import time
from types import SimpleNamespace

import psutil
import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards import GraderPool
from megatron_gopd.rewards.sandbox.keeper import GRACE_S
from megatron_gopd.rewards.sandbox.users import uid_for
from tests.rewards.hostile import programs
from tests.rewards.somebody import UID as SOMEBODY
from tests.rewards.somebody import grades_by, needs_root, processes_of

SANDBOX = Sandbox(seconds_per_test=2, seconds=3, wall_factor=2, memory_mb=256, processes=16, scratch_mb=4, workers=2)
SECRET = "what nobody may read"
QUICK = (
    "forks/forks_though_refused output/one_line_without_end memory/in_children memory/shared_and_out_of_sight "
    "time/masks_signals signals/kills_everyone_with_9 files/removes_everything files/reads_the_canary network/connects "
    "privileges/a_user_namespace referee/lowers_its_limits cheats/exits_at_once calls/a_pickle_that_changes_a_class "
    "calls/kills_the_checker"
).split()


@pytest.fixture(scope="module")
def bait(tmp_path_factory):
    """A file to steal or spoil, and a port, of TCP, UDP and an abstract socket, to talk to."""
    canary = tmp_path_factory.mktemp("bait") / "canary.txt"
    canary.write_text(SECRET)
    canary.chmod(0o666)
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        unix.bind(f"\0canary-{port}")
        for each in (tcp, unix):
            each.listen()
        yield SimpleNamespace(canary=canary, port=port, sockets=(tcp, udp, unix))


@pytest.fixture(scope="module")
def pool():
    with GraderPool("code", sandbox=SANDBOX) as pool:
        pool.grade(["nothing"], ["[]"])
        yield pool


@pytest.fixture(scope="module")
def grade(pool, bait):
    """grade(names) -> the grades of these programs, by name."""

    def grade(names: list[str] | None = None) -> dict:
        names, answers, tests = asked(names, bait)
        return dict(zip(names, pool.grade(answers, tests), strict=True))

    return grade


def asked(names: list[str] | None, bait) -> tuple[list[str], list[str], list[str]]:
    """Names, answers and tests of these programs, or of all."""
    found = programs(CANARY=str(bait.canary), PORT=str(bait.port))
    names = names or list(found)
    return names, [f"```python\n{found[name]}\n```" for name in names], [cases_of(name) for name in names]


def cases_of(name: str) -> str:
    if name.startswith("calls/"):
        if len(name) % 2:
            return json.dumps(["assert square(7) == 49"])
        return json.dumps({"inputs": [[7]], "outputs": [49], "fn_name": "square"})
    return json.dumps({"inputs": ["7\n"], "outputs": [SECRET if "canary" in name else "49\n"]})


def everything_is_as_it_was(bait, pool) -> None:
    """The canary lives, nobody called, the workers are the first ones, and no program of theirs runs."""
    assert bait.canary.read_text() == SECRET
    for each in bait.sockets:
        each.setblocking(False)
        with pytest.raises(BlockingIOError):
            each.recv(1) if each.type == socket.SOCK_DGRAM else each.accept()
    users = {uid_for(worker) for worker in worker_pids()} if os.getuid() == 0 else set()
    left = [process.info for process in psutil.process_iter(["uids", "cmdline"]) if process.info["uids"].real in users]
    assert left == []
    assert all(not psutil.Process(worker).children() for worker in worker_pids())


def worker_pids() -> list[int]:
    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("name", QUICK)
def test_a_hostile_program_is_contained(grade, pool, bait, name):
    workers = worker_pids()
    started = time.monotonic()
    result = grade([name])[name]
    assert result.score == 0.0
    assert result.problem
    assert time.monotonic() - started < SANDBOX.wall_seconds + GRACE_S + 30  # of a busy machine
    assert worker_pids() == workers
    everything_is_as_it_was(bait, pool)


def test_the_quick_ones_are_of_every_kind():
    assert {name.split("/")[0] for name in QUICK} == {name.split("/")[0] for name in programs()}
    assert len(set(programs().values())) >= 300


@needs_root
def test_hostile_programs_are_contained_for_a_user_without_privileges(bait):
    everyone_is_refused(QUICK, bait)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_300_hostile_programs_are_contained(grade, pool, bait):
    workers = worker_pids()
    grades = grade()
    assert {name: grade for name, grade in grades.items() if grade.score or not grade.problem} == {}
    assert worker_pids() == workers
    everything_is_as_it_was(bait, pool)
    for name, result in grades.items():
        print(f"{name}: {result.problem}")


@needs_root
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_300_hostile_programs_are_contained_for_a_user_without_privileges(bait):
    everyone_is_refused(None, bait)


def everyone_is_refused(names: list[str] | None, bait) -> None:
    """None is right, none ends the grading of the others, and none of the user's processes outlives it."""
    names, answers, tests = asked(names, bait)
    grades = grades_by(SOMEBODY, answers, tests, **SANDBOX.model_dump())
    assert {name: grade for name, grade in zip(names, grades, strict=True) if grade[0] or not grade[1]} == {}
    assert bait.canary.read_text() == SECRET
    assert processes_of(SOMEBODY) == []


def test_an_honest_program_passes_beside_hostile_ones(grade):
    tests = json.dumps({"inputs": ["7\n", "12"], "outputs": ["49\n", "144"]})
    answer = "```python\nprint(int(input()) ** 2)\n```"
    with GraderPool("code", sandbox=SANDBOX.model_copy(update={"seconds_per_test": 60.0, "seconds": 120.0})) as pool:
        hostile = programs(CANARY="/none", PORT="1")["forks/forks_though_refused"]
        hostile = f"import signal\nsignal.alarm(3)\n{hostile}"
        grades = pool.grade([f"```python\n{hostile}\n```", answer] * 2, [tests] * 4)
    assert [grade.score for grade in grades] == [0.0, 1.0] * 2
