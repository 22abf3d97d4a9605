"""Processor time ends a program; wall time only one that sleeps."""

from __future__ import annotations

import json

import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards import GraderPool
from megatron_gopd.rewards.code import code

STDIO = json.dumps({"inputs": ["7", "12"], "outputs": ["49", "144"]})
CALLED = json.dumps(["assert square(7) == 49", "assert square(12) == 144"])
BURN = "import time\ndef burn(s):\n    t = time.process_time()\n    while time.process_time() - t < s: pass\n"
CHILDREN = "import os\nfor _ in range(4):\n    if not os.fork(): burn(0.5); os._exit(0)\nfor _ in range(4): os.wait()\n"
SHORT = Sandbox(seconds_per_test=1, seconds=60, wall_factor=60)


def problem(program: str, tests: str, sandbox: Sandbox = SHORT) -> str | None:
    return code(f"```python\n{program}\n```", tests, sandbox).problem


@pytest.mark.parametrize(
    ("program", "tests", "why"),
    [
        (f"{BURN}burn(0.3)\ntime.sleep(1.5)\nprint(int(input()) ** 2)", STDIO, None),
        (f"{BURN}burn(1.5)\nprint(int(input()) ** 2)", STDIO, "test 1: timeout"),
        (f"{BURN}{CHILDREN}print(int(input()) ** 2)", STDIO, "test 1: timeout"),
        (f"{BURN}def square(n):\n    time.sleep(1.5)\n    burn(0.3)\n    return n * n", CALLED, None),
        (f"{BURN}def square(n):\n    burn(n / 8)\n    return n * n", CALLED, "test 2: timeout"),
        (f"{BURN}burn(1.5)\ndef square(n): return n * n", CALLED, "test 1: timeout"),
        ("def square(n): return n * n", json.dumps(["assert square(7) == 49\nwhile True: pass"]), "test 1: timeout"),
    ],
)
def test_processor_time_of_a_test_decides(program, tests, why):
    assert problem(program, tests) == why


@pytest.mark.parametrize("tests", [STDIO, CALLED])
def test_wall_time_ends_what_sleeps(tests):
    asleep = Sandbox(seconds_per_test=0.5, seconds=60, wall_factor=2)
    assert problem("import time\ntime.sleep(1000)", tests, asleep) == "test 1: timeout"


def test_all_tests_together_have_their_time():
    program = f"{BURN}burn(0.4)\nprint(int(input()) ** 2)"
    assert problem(program, STDIO, Sandbox(seconds_per_test=60, seconds=0.6, wall_factor=60)) == "test 2: timeout"


def test_a_right_program_passes_on_a_machine_with_too_few_cores():
    sandbox = Sandbox(seconds_per_test=1.2, seconds=60, wall_factor=60, workers=6)
    answer = f"```python\n{BURN}burn(0.6)\nprint(int(input()) ** 2)\n```"
    tests = json.dumps({"inputs": ["7"], "outputs": ["49"]})
    with GraderPool("code", sandbox=sandbox) as pool:
        assert [grade.problem for grade in pool.grade([answer] * 6, [tests] * 6)] == [None] * 6
