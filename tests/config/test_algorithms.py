"""The algorithms of a configuration: their defaults, and set-ups that cannot be written."""

from __future__ import annotations

import pytest

from tests.config.minimal import MINIMAL

START, REST = MINIMAL.split("teachers:\n")
WITHOUT_TEACHERS = START + REST[REST.index("data:") :]
GRPO = WITHOUT_TEACHERS + "algorithm: {type: grpo}\nrewards: math\n"
SFT = WITHOUT_TEACHERS + "algorithm: {type: sft}\n"


def test_grpo_starts_from_the_papers_setting(load):
    config = load(GRPO)
    assert (config.rollout.samples_per_prompt, config.optimizer.lr, config.algorithm.kl_coefficient) == (8, 1e-6, 0.0)


def test_what_the_file_says_stays(load):
    config = load(GRPO + "optimizer: {lr: 1e-3}\n", "rollout.samples_per_prompt=4")
    assert (config.rollout.samples_per_prompt, config.optimizer.lr) == (4, 1e-3)


def test_nothing_is_scored_that_grpo_does_not_read(load):
    assert load(GRPO).scorers() == {}
    assert load(GRPO, "algorithm.kl_coefficient=0.1").scorers()["the reference"].model == "/student"


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        (WITHOUT_TEACHERS, "run.seed=1", "teachers is empty: distillation needs one"),
        (GRPO, "teachers.math=/teacher", "Input should be a valid dictionary"),
        (GRPO, "teachers={math: {model: /t}}", "teachers have nothing to say in GRPO"),
        (GRPO, "rewards=none", "rewards is none, but GRPO learns from them"),
        (GRPO, "rollout.samples_per_prompt=1", "rollout.samples_per_prompt is 1, but GRPO compares"),
        (GRPO, "algorithm.mini_batches=3", "algorithm.mini_batches (3) must divide the prompts of a step"),
        (GRPO, "evaluation={prompts: x.jsonl}", "evaluation.prompts measures the distance from teachers, and there"),
        (GRPO, "algorithm.dual_clip=1", "algorithm.dual_clip: Input should be greater than 1"),
        (GRPO, "data.balance=equal", "data.balance: equal is a matter of teachers"),
        (MINIMAL, "algorithm.reward_weight=0.1", "rewards is none, but algorithm.reward_weight learns from them"),
        (MINIMAL, "algorithm.clamp=1", "algorithm.clamp bounds the term of lambda - 1, which is 0"),
        (MINIMAL, "rewards=mine.py", "rewards: write none, exact, math, math_lenient, code, auto, or FILE.py:FUNCTION"),
        (MINIMAL, "evaluation={suites: [mine.jsonl]}", "evaluation.suites: nothing grades the answers to mine.jsonl"),
        (SFT, "rollout.samples_per_prompt=2", "rollout.samples_per_prompt: a row of data has one response"),
        (SFT, "teachers={t: {model: /student}}", "teachers.t is the student's own initial model"),
        (
            SFT,
            "teachers={t: {model: /t, engine: served, server: {urls: ['http://u:1']}}}",
            "teachers.t.engine: served only scores",
        ),
        (SFT, "algorithm.lambda=1", "unknown key 'algorithm.lambda'; keys here: type, loss_aggregation"),
        (GRPO, "algorithm.type=grp", "algorithm.type: write type: gopd, grpo or sft"),
        (
            GRPO,
            "algorithm.clip_lo=1",
            "unknown key 'algorithm.clip_lo'; did you mean 'clip_low'? keys here: type, norm",
        ),
        (MINIMAL, "teachers.math.prompt={context: c, template: a}", "the template has no {prompt} and no {context}"),
    ],
)
def test_a_set_up_that_could_not_learn_is_refused(message, text, override, expected):
    assert expected in message(text, override)


def test_a_mistake_inside_the_algorithm_is_named_with_its_line(message):
    text = message(WITHOUT_TEACHERS + "rewards: math\nalgorithm:\n  type: grpo\n  clip_low: 2\n")
    assert text.startswith("FILE:11: algorithm.clip_low: Input should be less than 1 (given: 2)")
