"""sandbox.isolation: limits. What a program leaves running is ended with it, and nothing else is."""

from __future__ import annotations

import json
import os
import subprocess

import psutil
import pytest

from megatron_gopd.rewards.sandbox.users import uid_for
from tests.rewards.somebody import UID, grades_by, needs_root, processes_of, run_as

STDIO = json.dumps({"inputs": ["7"], "outputs": ["49"]})
CALLED = json.dumps(["assert square(7) == 49"])
SLEEP = "271828.1828"  # seconds
LEAVES = (
    "import os, subprocess\nif not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n"
    f"    os.execv('/bin/sleep', ['sleep', '{SLEEP}'])\nos.wait()\n"
)
ENDS = {
    "right": (f"{LEAVES}print(49)", STDIO),
    "wrong": (f"{LEAVES}print(48)", STDIO),
    "late": (f"{LEAVES}while True: pass", STDIO),
    "called": (f"{LEAVES}def square(n): return 49", CALLED),
    "failing when called": (f"{LEAVES}def square(n): return 48", CALLED),
    "forking": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", STDIO),
}
WITH_THE_USER_OF_A_SERVICE = """
import sys
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code
from megatron_gopd.rewards.sandbox import keeper
keeper.uid_of_programs = lambda: int(sys.argv[1])
print(code("```python\\nprint(48)\\n```", sys.argv[2], Sandbox(isolation="limits", seconds_per_test=60)).problem)
"""


@needs_root
@pytest.mark.parametrize("user", [0, UID])
def test_what_a_program_leaves_running_is_ended_however_it_ends(user):
    answers, tests = zip(*ENDS.values(), strict=True)
    fenced = [f"```python\n{program}\n```" for program in answers]
    settings = {"isolation": "limits", "seconds_per_test": 1, "wall_factor": 60, "processes": 64, "workers": 2}
    grades = grades_by(user, fenced, list(tests), **settings)
    problems = dict(zip(ENDS, (grade[1] for grade in grades), strict=True))
    assert [name for name, problem in problems.items() if problem is None] == ["right", "called"]
    assert problems["late"] == problems["forking"] == "test 1: timeout"
    assert [each for each in psutil.process_iter(["cmdline"]) if SLEEP in (each.info["cmdline"] or [])] == []
    assert not user or processes_of(user) == []


@needs_root
def test_processes_of_others_live_on_though_they_have_the_programs_user():
    user = 61_184  # the first that systemd gives a service
    with subprocess.Popen(["sleep", "1000"], user=user) as service:
        try:
            done = run_as(0, "-c", WITH_THE_USER_OF_A_SERVICE, str(user), STDIO)
            assert (done.stdout, done.stderr) == ("test 1: wrong answer\n", "")
            assert service.poll() is None
        finally:
            service.kill()


def test_a_user_of_programs_is_nobody_elses():
    dynamic_users, homed, people = range(61_184, 65_520), range(60_001, 60_514), range(1_000, 60_000)
    assert not any(uid_for(pid) in each for pid in range(0, 1 << 22, 4099) for each in (dynamic_users, homed, people))
    assert uid_for(os.getpid()) != uid_for(os.getppid())
