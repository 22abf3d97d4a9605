"""Programs and their tests: which pass, and what is said of those that do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.errors import UserError
from megatron_gopd.rewards import Grade, GraderPool
from megatron_gopd.rewards.code import check_sandbox, code, last_code_block

CALM = Sandbox(seconds_per_test=60, seconds=120, workers=2)  # a busy machine is no reason to fail
SQUARE = {"inputs": ["7\n", "12\n"], "outputs": ["49\n", "144\n"]}
CALLED = {"inputs": [[7], [12]], "outputs": [49, 144], "fn_name": "square"}
ASSERTED = ["assert square(7) == 49", "assert square(12) == 144"]
CHECKED = {
    "test": "def check(c): assert c(7) == 50 == square(7) + 1",
    "entry_point": "f",
    "setup": "def square(n): return n * n",
}
PROGRAM = "print(int(input()) ** 2)"
FUNCTION = "def square(n): return n * n"


def fenced(program: str) -> str:
    return f"Think.\n```python\n{program}\n```\nDone."


@pytest.fixture(scope="module")
def pool():
    with GraderPool("code", sandbox=CALM) as pool:
        yield pool


@pytest.fixture
def grade(pool):
    def grade(program: str, tests: object) -> Grade:
        return pool.grade([fenced(program)], [json.dumps(tests)])[0]

    return grade


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```python\na\n```", "a"),
        ("```python\na\n```\nor\n```python\nb\n```", "b"),
        ("```python\na\n```\n```bash\nb\n```", "a"),
        ("```\na\n```", "a"),
        ("```\na\n```\n```\nb\n```", "b"),
        ("```python\na\n```\nprints\n```\nb\n```", "a"),
        ("```Python\na\n```", "a"),
        ("```python\na\n```\n```python\nb", "a"),
        ("  ```python\n  a\n    b\n  ```", "a\n  b"),
        ("</think>```python\na\n```", "a"),
        ("The code: ```python\na\n```", "a"),
        ('```python title="a.py"\na\n```', "a"),
        ("```{python}\na\n```", "a"),
        ("```{.python .numberLines}\na\n```", "a"),
        ("```python:main.py\na\n```", "a"),
        ("```python\na\nb```", "a\nb"),
        ("````python\na\n```\nb\n````", "a\n```\nb"),
        ("```python\r\na\r\n```\r\n", "a"),
        ("Use ``` to quote.\n```python\na\n```", "a"),
        ("```python\n# ```python\na\n```", "# ```python\na"),
        ("```python\nthink</think>```python\na\n```", "a"),
        ('```python\na = """x\n  \n"""\n```', 'a = """x\n  \n"""'),
        ("```python\na\n```python\nb\n```", "b"),
        ("no code", None),
        ("```python\ncut off", None),
    ],
)
def test_the_last_closed_python_block_is_the_program(text, block):
    assert last_code_block(text) == block


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        (PROGRAM, SQUARE),
        (FUNCTION, CALLED),
        (f"class Solution:\n    {FUNCTION.replace('(n', '(self, n')}", CALLED),
        (FUNCTION, ASSERTED),
        ("def swap(pair): return pair[1], pair[0]", {"inputs": [[[1, 2]]], "outputs": [[2, 1]], "fn_name": "swap"}),
        ("def f(): return {1e999: (1j, {2}, b'3')}", ["assert f() == {float('inf'): (1j, {2}, b'3')}"]),
        ("class P:\n    def __init__(self, n): self.n = n\ndef get(p): return p.n", ["assert get(P(3)) == 3"]),
        ("def f(): raise KeyError('x')", ["try:\n    f()\n    assert False\nexcept KeyError:\n    pass"]),
        ("import numpy\ndef f(): return numpy.float64(1.5)", ["assert f() == 1.5"]),
        ("def f(n): return square(n) + 1", CHECKED),
        ("from __future__ import annotations\ndef f(n: what): return square(n) + 1", CHECKED),
        (f"from __future__ import annotations\n{PROGRAM}", SQUARE | {"setup": "import math"}),
        (f"from __future__ import (\n    annotations,\n)\n{PROGRAM}", SQUARE | {"setup": "import math"}),
        ("if __name__ == '__main__': print(int(input()) ** 2); exit()", SQUARE),
        ("import sys\nsys.setrecursionlimit(9**9)\nprint(int(sys.stdin.read()) ** 2)", SQUARE),
    ],
)
def test_a_right_program_passes(grade, program, tests):
    assert grade(program, tests) == Grade(1.0)


@pytest.mark.parametrize(
    ("program", "tests", "problem"),
    [
        ("print(49)", SQUARE, "test 2: wrong answer"),
        ("print(1 / 0)", SQUARE, "test 1: exit code 1: ZeroDivisionError: division by zero"),
        (
            "print(open('/sandbox/tests').read())",
            SQUARE,
            "test 1: exit code 1: FileNotFoundError: [Errno 2]",
        ),
        ("def square(n): return 49", CALLED, "test 2: wrong answer"),
        ("def square(n): return 49", ASSERTED, "test 2: wrong answer"),
        ("def square(n): return 1 / 0", ASSERTED, "test 1: ZeroDivisionError: division by zero"),
        ("def cube(n): return n", ASSERTED, "test 1: NameError: name 'square' is not defined"),
        ("def square(", ASSERTED, "test 1: SyntaxError: '(' was never closed"),
        ("import os; os._exit(0)", CALLED, "test 1: the program ended early"),
    ],
)
def test_a_wrong_program_says_which_test_failed_and_how(grade, program, tests, problem):
    given = grade(program, tests)
    assert given.score == 0.0
    assert given.problem.startswith(problem)


def test_what_one_test_leaves_behind_is_gone_for_the_next(grade):
    program = f"import os\nassert not os.listdir('/tmp')\nopen('/tmp/x', 'w')\n{PROGRAM}"
    assert grade(program, SQUARE) == Grade(1.0)


def test_programs_run_on_several_cores_and_come_back_in_order(pool):
    programs = [f"print({number})" for number in range(8)]
    tests = [json.dumps({"inputs": [""], "outputs": [str(number - number % 2)]}) for number in range(8)]
    assert [grade.score for grade in pool.grade(list(map(fenced, programs)), tests)] == [1.0, 0.0] * 4


def test_an_answer_of_a_megabyte_is_graded_by_its_end(pool):
    answers = ["x" * (1 << 20) + fenced(PROGRAM), fenced("#" * (1 << 20) + f"\n{PROGRAM}")]
    assert [grade.problem for grade in pool.grade(answers, [json.dumps(SQUARE)] * 2)] == [None, "no code"]


@pytest.mark.parametrize(("answer", "tests", "problem"), [("no code", "[]", "no code"), ("x", None, "no tests")])
def test_an_answer_without_code_and_a_row_without_tests_say_so(pool, answer, tests, problem):
    assert pool.grade([answer], [tests]) == [Grade(0.0, problem)]


def test_the_time_of_all_tests_is_bounded():
    sandbox = CALM.model_copy(update={"seconds": 2.0})
    slow = json.dumps({"inputs": [""] * 100, "outputs": [""] * 100})
    assert code(fenced("import time; time.sleep(0.5)"), slow, sandbox).problem.endswith(": timeout")


def test_a_machine_that_can_isolate_is_accepted():
    check_sandbox(CALM)


AS_SOMEBODY = """
import sys
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code
print(code(sys.argv[1], sys.argv[2], Sandbox(seconds_per_test=60, seconds=120, isolation=sys.argv[3])).problem)
"""


@pytest.mark.skipif(os.getuid() != 0 or not Path("/usr/bin/python3").exists(), reason="needs root and a system Python")
@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_a_user_without_privileges_grades_alike(isolation):
    command = ["/usr/bin/python3", "-c", AS_SOMEBODY, fenced(PROGRAM), json.dumps(SQUARE), isolation]
    path = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(pytest.__file__).parents[1]}"}
    somebody = {"user": 4321, "group": 4321, "extra_groups": []}
    done = subprocess.run(command, capture_output=True, text=True, env=path, cwd="/", check=False, **somebody)
    assert done.stdout == "None\n", done.stderr


@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_an_error_of_the_system_is_the_answers_once_a_program_has_started(isolation):
    from megatron_gopd.rewards.sandbox import SandboxError
    from megatron_gopd.rewards.sandbox.keeper import in_jail

    def work(jail, *, started: bool) -> dict:
        jail.started = started
        raise OSError(24, "Too many open files")

    settings = CALM.model_copy(update={"isolation": isolation})
    answer = in_jail(lambda jail: work(jail, started=True), {}, 0, settings)
    assert answer == {"problem": "crash: OSError: [Errno 24] Too many open files"}
    with pytest.raises(SandboxError, match="Too many open files"):
        in_jail(lambda jail: work(jail, started=False), {}, 0, settings)


def test_a_row_larger_than_a_programs_folders_is_graded(grade):
    stdin, setup = 70 << 20, 17 << 20
    tests = {"inputs": ["x" * stdin], "outputs": [f"{stdin} {setup}"], "setup": f"TEXT = '{'x' * setup}'"}
    assert grade("print(len(open('/dev/stdin').read()), len(TEXT))", tests) == Grade(1.0)


def test_a_row_that_no_sandbox_can_hold_costs_its_own_reward():
    small = CALM.model_copy(update={"memory_mb": 128})
    tests = json.dumps({"inputs": ["x" * (129 << 20)], "outputs": [""]})
    problem = "the setup and largest input hold 129 MiB, more than sandbox.memory_mb"
    assert code(fenced("print()"), tests, small) == Grade(0.0, problem)


def test_a_kernel_that_refuses_is_an_error_and_no_grade(monkeypatch):
    from megatron_gopd.rewards.sandbox import SandboxError, keeper

    def refuse(flags: int) -> None:
        raise PermissionError(1, "unshare: Operation not permitted")

    monkeypatch.setattr(keeper.linux, "unshare", refuse)
    with pytest.raises(SandboxError, match="unshare: Operation not permitted"):
        code(fenced(PROGRAM), json.dumps(SQUARE), CALM)


def test_a_machine_that_cannot_isolate_is_refused_in_words(monkeypatch, tmp_path):
    """A Python whose kernel has no namespaces left to give."""
    site = tmp_path / "sitecustomize.py"
    site.write_text(
        "import sys\nfrom megatron_gopd.rewards.sandbox import linux\n"
        "def refuse(flags): raise PermissionError(1, 'unshare: Operation not permitted')\nlinux.unshare = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    with pytest.raises(UserError) as caught:
        check_sandbox(CALM)
    assert "does not work on this machine: [Errno 1] unshare: Operation not permitted; run as root or" in str(
        caught.value
    )
