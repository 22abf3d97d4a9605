from __future__ import annotations

import json

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.rewards.tests import Assertions, Calls, ListOfOne, Stdio, parse_tests, same_output, same_value


@pytest.mark.parametrize(
    ("written", "tests"),
    [
        ({"inputs": ["1\n", ["2", "3"]], "outputs": ["a", ["b", "c"]]}, Stdio((("1\n", "a"), ("2\n3", "b\nc")))),
        ({"inputs": [[1, "x"]], "outputs": [[2]], "fn_name": "f"}, Calls("f", (((1, "x"), [2]),))),
        ({"inputs": ['[1, 2]\n"x"'], "outputs": ["[2]"], "fn_name": "f"}, Calls("f", ((([1, 2], "x"), [2]),))),
        (["assert f(1) == 2"], Assertions(("assert f(1) == 2",))),
        ({"test": "def check(c): pass", "entry_point": "f"}, Assertions(("def check(c): pass\ncheck(f)",), entry="f")),
        ({"inputs": [""], "outputs": ["1"], "setup": "import math"}, Stdio((("", "1"),), "import math")),
    ],
)
def test_every_published_form_is_read(written, tests):
    assert parse_tests(json.dumps(written)) == tests


def test_an_integer_of_any_length_is_read():
    text = '{"inputs": [[1]], "outputs": [1' + "0" * 5000 + '], "fn_name": "f"}'
    assert parse_tests(text).cases[0][1] == 10**5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "tests are not JSON: "),
        ("[" * 10**5, "tests are not JSON: "),
        ("[]", "tests: write "),
        ("[1]", "tests: write "),
        ("{}", "tests: as many outputs as inputs"),
        ('{"inputs": [], "outputs": []}', "tests: as many outputs as inputs"),
        ('{"inputs": ["1"], "outputs": []}', "tests: as many outputs as inputs"),
        ('{"inputs": [{}], "outputs": ["1"]}', "tests: 'inputs' holds dict; text is expected"),
        ('{"inputs": ["x y"], "outputs": ["1"], "fn_name": "f"}', "tests: an input or output of fn_name is not JSON"),
        ('{"test": "def check(c): pass"}', "tests: 'entry_point' holds NoneType; text is expected"),
    ],
)
def test_tests_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        parse_tests(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("output", "expected"),
    [("1 2\n3\n", "1 2 \n3"), ("1.0", "1"), ("0.3333333", "0.33333333"), ("Yes\r\nNo", "Yes\nNo"), ("", "\n")],
)
def test_the_same_output_may_be_spaced_otherwise(output, expected):
    assert same_output(output, expected)


@pytest.mark.parametrize(
    ("output", "expected"),
    [("1 2 3", "1 2\n3"), ("yes", "Yes"), ("1000001", "1000000"), ("0.33", "0.3333"), ("49 64", "49"), ("nan", "1.5")],
)
def test_another_output_is_not_the_same(output, expected):
    assert not same_output(output, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2), [1, 2]),
        (3, ListOfOne([3])),
        ([3], ListOfOne([3])),
        (0.1 + 0.2, 0.3),
        ({1: 2}, {"1": 2}),
        ([(1,)], [[1]]),
    ],
)
def test_the_same_value_may_be_another_type(value, expected):
    assert same_value(value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[([1, 2], [2, 1]), (1, [1, 2]), ("3", 3), (None, 0), ([1], 1), (3, [3])],
        *[(999999500.0, 999999000), (3.0000001, 3), ([2.9999999], [3]), (4, ListOfOne([3]))],
    ],
)
def test_another_value_is_not_the_same(value, expected):
    assert not same_value(value, expected)


@pytest.mark.parametrize(
    ("inputs", "outputs", "one"),
    [
        ([[1], [2]], [[5], [6]], True),  # APPS
        ([[1], [2]], [[5], [6, 7]], False),  # lists are what the function returns
        ([[1]], [5], False),
        (["1"], ["[5]"], False),  # LiveCodeBench
    ],
)
def test_a_list_of_one_stands_for_its_value_in_apps_alone(inputs, outputs, one):
    tests = parse_tests(json.dumps({"inputs": inputs, "outputs": outputs, "fn_name": "f"}))
    assert same_value(5, tests.cases[0][1]) == (one or outputs == [5])
