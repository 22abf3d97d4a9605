"""The first line of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_gopd.training.headline import headline


@pytest.fixture(autouse=True)
def alone(one_rank): ...


def of(config, **counts: int) -> list[str]:
    return headline(config, [SimpleNamespace(teacher=name) for name in counts for _ in range(counts[name])])


def test_it_says_what_the_run_is(make_config):
    parts = of(make_config(), short=3, strong=1)
    assert parts[0].endswith("/first: gopd, 5 steps")
    assert parts[1:] == [
        "cpu, 1 rank",
        "student student float32, dp=1",
        "teacher short student float32, 3 prompts, lambda 1.25",
        "teacher strong teacher float32, 1 prompt, lambda 1.25",
        "reference of short the student's start",
        "reference of strong other float32",
    ]


def test_no_reference_is_named_that_is_not_asked(make_config):
    assert not any("reference" in part for part in of(make_config(algorithm={"lambda": 1.0}), short=1))


def test_without_teachers_the_prompts_are_counted(make_config):
    config = make_config(algorithm={"type": "grpo"}, teachers={}, rollout={"samples_per_prompt": 2})
    assert of(config, **{"": 7})[2:] == ["student student float32, dp=1", "7 prompts"]


def test_imitation_has_no_lambda(make_config):
    parts = of(make_config(algorithm={"type": "sft"}, rewards="none"), short=2, strong=2)
    assert parts[3] == "teacher short student float32, 2 prompts"
