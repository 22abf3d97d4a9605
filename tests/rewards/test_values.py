"""Values that are no plain data compare by what they hold, in asserts and in calls."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards import GraderPool

CALM = Sandbox(seconds_per_test=60, seconds=120, workers=2)  # a busy machine is no reason to fail
POINT = "from collections import namedtuple\nPoint = namedtuple('Point', 'x y')\n"
NODE = "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
COLOR = "import enum\nclass Color(enum.Enum): RED = 1; BLUE = 2\n"
BAG = "class Bag:\n    def __init__(self, items): self.n = len(items)\n    def __len__(self): return self.n\n"


@pytest.fixture(scope="module")
def problem():
    """problem(program, tests) -> why it fails, or None."""
    with GraderPool("code", sandbox=CALM) as pool:
        yield lambda program, tests: pool.grade([f"```python\n{program}\n```"], [json.dumps(tests)])[0].problem


@pytest.mark.parametrize(
    ("program", "right", "wrong"),
    [
        ("def f(): yield from (4, 9)", "assert list(f()) == [4, 9]", "assert list(f()) == [4, 8]"),
        ("def f(): yield from (4, 9)", "g = f()\nassert (next(g), next(g), next(g, 0)) == (4, 9, 0)", "next(iter([]))"),
        (
            "def f():\n    n = 0\n    while True: yield (n := n + 1)",
            "from itertools import islice\nassert list(islice(f(), 3)) == [1, 2, 3]",
            "assert next(f()) == 2",
        ),
        ("def f(): return map(abs, [-4, 9])", "assert sorted(f()) == [4, 9]", "assert tuple(f()) == (4,)"),
        ("def f(): return zip('ab', [1, 2])", "assert dict(f()) == {'a': 1, 'b': 2}", "assert not list(f())"),
        ("def f(): return {1: 2}.keys()", "assert f() == {1} and 1 in f() and len(f()) == 1", "assert f() == {2}"),
        ("def f(): return {1: 2}.values()", "assert list(f()) == [2]", "assert list(f()) == [1]"),
        ("def f(): return {1: 2}.items()", "assert f() == {(1, 2)}", "assert f() == {(1, 3)}"),
        (f"{POINT}def f(): return Point(4, 9)", "assert f() == (4, 9)", "assert f() == (4, 8)"),
        (f"{POINT}def f(): return [Point(4, 9)]", "assert f()[0].y == 9 and f() == [(4, 9)]", "assert f()[0].y == 4"),
        (
            f"{POINT}def f(): return Point(4, 9)",
            "assert f()._asdict() == {'x': 4, 'y': 9}",
            "assert f()._asdict() == 4",
        ),
        (f"{NODE}def f(): return Node(4, Node(9))", "assert f().next.value == 9", "assert f().value == 9"),
        (f"{NODE}def f(n): return n.value", "n = Node(4)\nn.value = 5\nassert f(n) == 5", "assert f(Node(4)) == 5"),
        (f"{NODE}def f(): return Node(4)", "assert isinstance(f(), Node)", "assert isinstance(4, Node)"),
        (f"{NODE}def f(): return Node(4)", "assert f().next is None and f()", "assert f().last is None"),
        (f"{COLOR}def f(): return Color.RED", "assert f() is Color.RED and f().value == 1", "assert f() == Color.BLUE"),
        (f"{BAG}def f(): return Bag([4, 9])", "assert len(f()) == 2 and not Bag([])", "assert len(f()) == 3"),
        ("def f(g, x): return g(g(x))", "assert f(lambda x: x * 3, 1) == 9", "assert f(lambda x: x * 3, 1) == 3"),
        ("def f(g): return lambda x: g(x) + 1", "assert f(abs)(-3) == 4", "assert f(lambda x: x)(3) == 3"),
        ("def f(g): return g\ndef h(x): return x", "assert f(h) is h and f(f)(h)(2) == 2", "assert f(h) is f"),
        ("def f(g): return g(4)", "def g(x): return f(lambda y: x + y)\nassert f(g) == 8", "assert f(str) == 4"),
        (
            "def f(g):\n    try: return g()\n    except KeyError: return 7",
            "def g(): raise KeyError('x')\nassert f(g) == 7",
            "def g(): raise ValueError('x')\nassert f(g) == 7",
        ),
        ("def f(items): return sum(items)", "assert f(x for x in (4, 9)) == 13", "assert f(iter([4, 9])) == 4"),
        ("def f(items): return list(items)", "assert f({1: 2}.keys()) == [1]", "assert f(map(str, [1])) == [1]"),
    ],
)
def test_an_assert_uses_what_is_no_plain_value_as_python_does(problem, program, right, wrong):
    assert problem(program, [right]) is None
    assert problem(program, [wrong])


@pytest.mark.parametrize(
    "value",
    [
        *[
            "(x for x in (4, 9))",
            "map(abs, [-4, 9])",
            "{4: 1, 9: 2}.keys()",
            "{1: 4, 2: 9}.values()",
            "range(4, 10, 5)",
        ],
        *["{9, 4}", "(4, 9)", "Point(4, 9)", "__import__('collections').deque([4, 9])", "iter([4, 9])"],
        *[
            "__import__('numpy').array([4, 9])",
            "[__import__('numpy').int64(4), 9]",
            "__import__('array').array('i', [4, 9])",
        ],
    ],
)
def test_a_call_that_returns_what_can_be_listed_is_compared_as_a_list(problem, value):
    def cases(*outputs):
        return {"inputs": [[]] * len(outputs), "outputs": list(outputs), "fn_name": "f"}

    assert problem(f"{POINT}def f(): return {value}", cases([4, 9])) is None
    assert problem(f"{POINT}def f(): return [{value}]", cases([[4, 9]])) is None
    for wrong in ([9, 4], [4], [4, 9, 9], 4, "49"):
        assert problem(f"{POINT}def f(): return {value}", cases([4, 9], wrong)) == "test 2: wrong answer"


@pytest.mark.parametrize(
    "claim",
    [
        "class Any:\n    __eq__ = __ge__ = __le__ = __contains__ = lambda *a: True\n    __sub__ = lambda *a: 0",
        "class Any(tuple):\n    __new__ = lambda c: tuple.__new__(c, [1])\n    __eq__ = __contains__ = lambda *a: True",
        "class Any(int):\n    __eq__ = lambda *a: True\n    __sub__ = lambda *a: 0\n    __hash__ = lambda s: 49",
        "class Any:\n    __array_interface__ = __array__ = property(lambda s: 1 / 0)\n    __float__ = lambda s: 49.0",
    ],
)
@pytest.mark.parametrize(
    "test",
    [
        *["assert f() == 49", "assert not f() != 49", "assert 49 == f()", "assert f() in (49,)", "assert 49 in f()"],
        *["assert abs(f() - 49) < 1e-6", "import numpy\nassert numpy.allclose(f(), 49)", "assert f() >= 49"],
    ],
)
def test_what_an_object_says_of_its_equality_counts_for_nothing(problem, claim, test):
    assert problem(f"{claim}\ndef f(): return Any()", [test])


@pytest.mark.parametrize(
    "name",
    ["zip", "set", "sorted", "abs", "enumerate", "len", "all", "isinstance", "AssertionError", "__build_class__"],
)
def test_a_name_of_the_answer_does_not_take_the_place_of_a_builtin(problem, name):
    check = (
        "def check(f):\n    for i, (x, y) in enumerate(zip([7], [49])):\n"
        "        assert abs(f(x) - y) < 1 and set([f(x)]) == {y} and sorted([f(x)]) == [y]\n        class C: pass"
    )
    shadow = f"def {name}(*a): return []\ndef square(n): return 0"
    assert problem(shadow, {"test": check, "entry_point": "square"}) == "test 1: wrong answer"
    assert problem(shadow, [f"{check}\ncheck(square)"]) == "test 1: wrong answer"
    right = f"def {name}(*a): return []\ndef square(n): return n * n"
    assert problem(right, {"test": check, "entry_point": "square"}) is None


@pytest.mark.parametrize(
    "tests",
    [
        {"test": "def check(f): assert f(7, 2) == 9", "entry_point": "sum"},
        ["assert sum(7, 2) == 9", "assert set([sum(7, 3)]) == {10}"],
        ["def same(a, b): assert all([a]) and a == b\nfor i, x in enumerate(zip([7], [2])): same(sum(*x), 9)"],
    ],
)
def test_an_entry_point_may_have_the_name_of_a_builtin(problem, tests):
    assert problem("def sum(a, b): return a + b", tests) is None
    assert problem("def sum(a, b): return a - b", tests) == "test 1: wrong answer"
    assert problem("def zip(*a): return []\ndef sum(a, b): return a - b", tests) == "test 1: wrong answer"
    assert problem("def zip(*a): return []", tests)


@pytest.mark.parametrize(
    "error", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt"]
)
@pytest.mark.parametrize(
    "test", ["for each in map(f, [7]): assert each == 49", "assert all(map(f, [7]))", "list(map(f, [7]))"]
)
def test_an_error_of_the_answer_ends_no_loop_of_the_tests(problem, error, test):
    assert problem(f"def f(n): raise {error}", [test]).startswith("test 1: ")


def test_an_error_of_the_answer_s_own_class_is_caught_as_what_it_is_made_from(problem):
    program = "class Odd(ValueError): pass\ndef f(): raise Odd('x')"
    test = "try:\n    f()\n    assert False\nexcept {}: pass"
    assert problem(program, [test.format("ValueError")]) is None
    assert problem(program, [test.format("KeyError")]) == "test 1: ValueError: Odd: x"
    stop = program.replace("ValueError", "StopIteration").replace("f()", "f(n)")
    assert problem(stop, ["list(map(f, [7]))"]).startswith("test 1: StoppedError")


def test_a_program_that_ends_early_fails_whatever_its_tests_catch(problem):
    test = "try:\n    f()\n    assert False\nexcept {}: pass"
    program = "import os\nclass A:\n    def end(self): os._exit(0)\ndef f(): os._exit(0)"
    of_a_copy = "import copy\n" + test.replace("f()", "copy.deepcopy(A()).end()")
    for each in (test.format("Exception"), test.format("BaseException"), of_a_copy.format("BaseException")):
        assert problem(program, [each]) == "test 1: the program ended early"


def test_what_tests_print_is_no_verdict(problem):
    assert problem("def f(): return 'x' * 2**21", ["print(f())"]) is None
    said = """'x' * 90000 + '\\n{"problem": null}'"""
    program = f"import os\nasked = []\ndef f():\n    asked.append(1)\n    if len(asked) == 1: return {said}\n"
    assert problem(f"{program}    os.kill(-1, 9)", ["print(f())\nassert f() == 1"]) == "the tests were ended"


def test_asserts_hold_in_a_python_that_leaves_them_out():
    program = (
        "from megatron_gopd.config.schema import Sandbox\nfrom megatron_gopd.rewards.code import code\n"
        "answer = '```python\\ndef f(): return 1\\n```'\n"
        "print(code(answer, '[\"assert f() == 2\"]', Sandbox(seconds_per_test=60, seconds=120)).score)"
    )
    done = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0.0\n"
