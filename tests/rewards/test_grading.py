"""Which reward a prompt gets, what is refused before a run begins, and rewards of the user's own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.data import Prompt
from megatron_gopd.errors import UserError
from megatron_gopd.rewards import Grade, Graders, check_machine, check_rows, grader_of

TESTS = json.dumps({"inputs": ["7"], "outputs": ["49"]})
SANDBOX = Sandbox(seconds_per_test=60, seconds=120, workers=1)
OWN = """\
def length(response, label, finish_reason, hint, **row):
    return len(response) + (0.5 if finish_reason == "stop" else 0.0) + len(hint) + (label is None)

def words(response, label, **row):
    return response

def fails(response, label, **row):
    return row["nothing"]
"""


def prompt(label: str | None = None, tests: str | None = None, **columns) -> Prompt:
    return Prompt("1", [], label, "", [1], [1], [1], "train.jsonl:1", tests, columns=columns)


def check_gradable(rewards: str, prompts: list[Prompt], sandbox: Sandbox = SANDBOX, *, every: bool) -> None:
    """As a run does before it begins."""
    check_machine({rewards, *check_rows(rewards, prompts, sandbox, every=every)}, sandbox)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """own(function) -> FILE.py:FUNCTION"""
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return lambda function: f"{path}:{function}"


@pytest.mark.parametrize(
    ("rewards", "label", "tests", "grader"),
    [
        ("auto", "5", None, "math"),
        ("auto", None, TESTS, "code"),
        ("auto", "5", TESTS, "code"),
        ("auto", None, None, None),
        ("math", "5", None, "math"),
        ("math", None, TESTS, None),
        ("exact", "5", None, "exact"),
        ("code", "5", TESTS, "code"),
        ("none", "5", TESTS, None),
        ("mine.py:f", None, None, "mine.py:f"),
    ],
)
def test_a_prompt_gets_its_grader(rewards, label, tests, grader):
    assert grader_of(rewards, prompt(label, tests)) == grader


@pytest.mark.parametrize(
    ("rewards", "asked", "every", "message"),
    [
        ("code", prompt("5"), False, "train.jsonl:1: no tests, and rewards: code; add a column `tests`, or set"),
        ("auto", prompt(tests="{"), False, "train.jsonl:1: tests are not JSON: "),
        ("code", prompt(tests="{}"), False, "train.jsonl:1: tests: as many outputs as inputs are expected"),
        ("math", prompt(tests=TESTS), True, "train.jsonl:1: no label, and rewards: math; add `label`"),
        ("auto", prompt(), True, "train.jsonl:1: neither a label nor tests, so nothing grades it"),
        ("nowhere.py:f", prompt(), True, "rewards: nowhere.py: no such file"),
    ],
)
def test_what_cannot_be_graded_is_refused_with_its_row(rewards, asked, every, message):
    with pytest.raises(UserError) as caught:
        check_gradable(rewards, [asked], every=every)
    assert str(caught.value).startswith(message)


def test_rows_without_a_label_may_stay_where_rewards_are_a_metric():
    check_gradable("math", [prompt()], every=False)


def test_a_batch_of_math_and_code_is_graded_by_both():
    answers = [r"\boxed{5}", r"\boxed{6}", "```python\nprint(int(input()) ** 2)\n```", "```python\nprint(5)\n```", "?"]
    prompts = [prompt("5"), prompt("5"), prompt(tests=TESTS), prompt(tests=TESTS), prompt()]
    with Graders("auto", SANDBOX) as graders:
        grades = graders.grade(prompts, answers, ["stop"] * 5)
    assert [grade and grade.score for grade in grades] == [1.0, 0.0, 1.0, 0.0, None]


def test_a_function_is_told_the_row_and_whether_the_response_ended(own):
    rows = [prompt("5", hint="ab"), prompt(None, hint="")]
    with Graders(own("length"), SANDBOX) as graders:
        assert graders.grade(rows, ["xyz", ""], ["stop", "length"]) == [Grade(5.5), Grade(1.0)]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("words", ":4: words returned 'x'; a finite number is expected"),
        ("fails", ":8: KeyError: 'nothing' (in: return row[\"nothing\"])"),
    ],
)
def test_a_function_that_fails_ends_the_run_with_the_row_and_the_line(own, function, problem):
    file = own(function).rpartition(":")[0]
    with Graders(own(function), SANDBOX) as graders, pytest.raises(UserError) as caught:
        graders.grade([prompt()], ["x"], ["stop"])
    assert (
        str(caught.value)
        == f"train.jsonl:1: rewards: {own(function)} failed on a response to it: crash: {file}{problem}"
    )


def test_a_file_without_the_function_is_named(own):
    with pytest.raises(UserError, match=r"own\.py defines no function missing"):
        check_gradable(own("missing"), [], every=True)


def several(*golds: str, any_of: bool) -> Prompt:
    return replace(prompt(json.dumps(golds)), golds=golds, any_of=any_of)


@pytest.mark.parametrize("rewards", ["math", "exact", "auto"])
def test_several_answers_of_which_nothing_says_that_each_is_right_are_refused(rewards):
    told = r'train.jsonl:1: the label is a list of 2 answers: \["5", "7"\]; give the one that is right'
    with pytest.raises(UserError, match=told):
        check_gradable(rewards, [several("5", "7", any_of=False)], every=True)
    check_gradable(rewards, [several("5", "7", any_of=True)], every=True)


def test_any_of_several_answers_is_right():
    asked = [several("5", "seven", any_of=True), prompt("5"), several("5", "7", any_of=True)]
    with Graders("exact", SANDBOX) as graders:
        grades = graders.grade(asked, [r"\boxed{seven}", r"\boxed{5}", r"\boxed{6}"], ["stop"] * 3)
    assert [grade.score for grade in grades] == [1.0, 1.0, 0.0]


def test_tests_that_no_sandbox_of_this_size_can_hold_are_refused_with_their_row():
    asked = prompt(tests=json.dumps(json.loads(TESTS) | {"setup": "#" * (129 << 20)}))
    small = SANDBOX.model_copy(update={"memory_mb": 128})
    with pytest.raises(UserError, match="train.jsonl:1: tests: the setup and largest input hold 129 MiB, more than"):
        check_gradable("code", [asked], small, every=False)
