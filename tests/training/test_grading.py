"""Which reward a prompt gets, and what is refused before a run begins."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from megatron_gopd.data import Prompt
from megatron_gopd.errors import UserError
from megatron_gopd.training.grading import Grader, check_rewards, grader_of

TESTS = json.dumps({"inputs": ["7"], "outputs": ["49"]})


def prompt(label: str | None = None, tests: str | None = None) -> Prompt:
    return Prompt("1", [], label, "", [1], [1], [1], "train.jsonl:1", tests)


def config(rewards: str) -> SimpleNamespace:
    from megatron_gopd.config.schema import Sandbox

    return SimpleNamespace(rewards=rewards, sandbox=Sandbox(seconds_per_test=60, seconds=120, workers=1))


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
    ],
)
def test_a_prompt_gets_its_grader(rewards, label, tests, grader):
    assert grader_of(rewards, prompt(label, tests)) == grader


@pytest.mark.parametrize(
    ("rewards", "tests", "message"),
    [
        ("code", None, "train.jsonl:1: no tests, and rewards: code; add a column `tests`, or set rewards: auto"),
        ("auto", "{", "train.jsonl:1: tests are not JSON: "),
        ("code", "{}", "train.jsonl:1: tests: as many outputs as inputs are expected"),
    ],
)
def test_tests_that_cannot_grade_are_refused_with_their_row(rewards, tests, message):
    with pytest.raises(UserError) as caught:
        check_rewards(config(rewards), [prompt("5"), prompt(tests=tests)][rewards == "code" :])
    assert str(caught.value).startswith(message)


def test_a_batch_of_math_and_code_is_graded_by_both():
    answers = [r"\boxed{5}", r"\boxed{6}", "```python\nprint(int(input()) ** 2)\n```", "```python\nprint(5)\n```", "?"]
    prompts = [prompt("5"), prompt("5"), prompt(tests=TESTS), prompt(tests=TESTS), prompt()]
    batch = [SimpleNamespace(prompt=each, response_tokens=i, reward=None) for i, each in enumerate(prompts)]
    tokenizer = SimpleNamespace(decode=lambda tokens, skip_special_tokens: answers[tokens])
    with Grader(config("auto")) as grader:
        grader.grade(batch, tokenizer)
    assert [row.reward for row in batch] == [1.0, 0.0, 1.0, 0.0, None]
