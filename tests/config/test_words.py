"""What is written shortly, and what is answered in the words of the file where the kind of a value is wrong."""

from __future__ import annotations

import pytest

from megatron_gopd.config.schema import Wandb
from tests.config.minimal import MINIMAL


def test_a_path_is_a_model(load):
    config = load(MINIMAL, "student=/s", "teachers.code=/c", "algorithm.reference=/r", "algorithm.lambda=1.25")
    assert (config.student.model, config.teachers["code"].model, config.algorithm.reference.model) == ("/s", "/c", "/r")


def test_a_model_given_as_a_path_takes_further_overrides(load):
    config = load(MINIMAL, "teachers.code=/c", "teachers.code.dtype=float32")
    assert (config.teachers["code"].model, config.teachers["code"].dtype) == ("/c", "float32")


@pytest.mark.parametrize(
    ("said", "meant"), [("true", Wandb()), ("false", None), ("null", None), ("{project: x}", Wandb(project="x"))]
)
def test_a_section_that_may_be_left_out_is_turned_on_and_off(load, said, meant):
    assert load(MINIMAL, f"logging.wandb={said}").logging.wandb == meant


@pytest.mark.parametrize("section", ["rollout", "optimizer", "logging", "data.chat_template_kwargs", "student.layout"])
def test_an_empty_section_is_one_left_out(load, section):
    assert load(MINIMAL, f"{section}=null") in (load(MINIMAL), load(MINIMAL, "data.chat_template_kwargs={}"))


def test_an_algorithms_own_defaults_fill_an_empty_section(load):
    text = MINIMAL.replace("teachers:\n  math:\n    model: /teacher\n", "rollout:\n")
    assert load(text, "algorithm=grpo", "rewards=math").rollout.samples_per_prompt == 8


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("teachers=null", "teachers is empty: distillation needs one, teachers.NAME.model"),
        (
            "teachers=/t",
            "teachers: names are expected here, each with keys below it: {NAME: {model: ...}}",
        ),
        ("teachers=[/a, /b]", "teachers: names are expected here, each with keys below it: {NAME: {model: ...}}"),
        ("teachers.math=5", "teachers.math: keys are expected here: model, layout, dtype"),
        ("logging.wandb=name", "logging.wandb: keys are expected here: project, mode, entity, group, tags, id"),
        ("checkpoint=false", "checkpoint: keys are expected here: every, keep, resume, grace_s (given: false)"),
        ("student=null", "'student' is missing"),
        ("run.name=5", "run.name: text is expected; put it in quotes (given: 5)"),
        ("run.steps=null", "run.steps: a whole number is expected (given: null)"),
        ("logging.tensorboard=maybe", "logging.tensorboard: true or false is expected (given: 'maybe')"),
        ("data.train=[1, 2]", "data.train: write a file, a folder, a glob, or a list of these (given: [1, 2])"),
        ("rollout.sglang.urls=http://a:1", "rollout.sglang.urls: a list is expected: [ONE, OTHER]"),
        ("algorithm=reinforce", "algorithm.type: write type: gopd, grpo or sft"),
    ],
)
def test_a_value_of_the_wrong_kind_is_one_message(message, override, said):
    told = message(MINIMAL, override)
    assert told.startswith(f"override {override!r}: {said}")
    assert len(told.splitlines()) == 1
