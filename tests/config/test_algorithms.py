"""The algorithms of a configuration: their defaults, and set-ups that cannot be written."""

from __future__ import annotations

import pytest

from tests.config.minimal import MINIMAL

START, REST = MINIMAL.split("teachers:\n")
WITHOUT_TEACHERS = START + REST[REST.index("data:") :]
GRPO = WITHOUT_TEACHERS + "algorithm: {type: grpo}\nrewards: math\n"
EXACT = MINIMAL + "algorithm: {gradient: exact, lambda: 1.25}\n"
TOP_K = MINIMAL.replace("model: /teacher", "model: /teacher\n    engine: sglang")
TOP_K += "algorithm: {gradient: top_k, lambda: 1.25}\n"
SFT = WITHOUT_TEACHERS + "algorithm: {type: sft}\n"


def test_grpo_starts_from_the_papers_setting(load):
    config = load(GRPO)
    assert (config.rollout.samples_per_prompt, config.optimizer.lr, config.algorithm.kl_coefficient) == (8, 1e-6, 0.0)


def test_what_the_file_says_stays(load):
    config = load(GRPO + "optimizer: {lr: 1e-3}\n", "rollout.samples_per_prompt=4")
    assert (config.rollout.samples_per_prompt, config.optimizer.lr) == (4, 1e-3)


def test_a_reference_is_asked_for_teachers_that_extrapolate(load):
    config = load(MINIMAL, "teachers.code={model: /code, lambda: 1.5}")
    assert [config.lambda_of(name) for name in ("math", "code")] == [1.0, 1.5]
    assert list(config.scorers()) == ["teachers.math", "teachers.code", "the reference of teachers.code"]


def test_nothing_is_scored_that_grpo_does_not_read(load):
    assert load(GRPO).scorers() == {}
    assert load(GRPO, "algorithm.kl_coefficient=0.1").scorers()["the reference"].model == "/student"


def test_a_server_tells_of_twenty_tokens_unless_asked_for_others(load):
    assert load(TOP_K).algorithm.top_k == 20
    assert load(TOP_K, "algorithm.top_k=7", "algorithm.divergence=forward_kl").algorithm.top_k == 7


def test_our_scorer_tells_of_the_tokens_that_a_teacher_named(load):
    reference = "{model: /r, engine: served, server: {urls: ['http://u:1']}}"
    config = load(TOP_K, f"teachers.math.reference={reference}")
    assert config.scorers()["the reference of teachers.math"].engine == "served"


def test_hidden_states_of_servers_serve_any_temperature(load):
    config = load(EXACT, "teachers.math.engine=sglang", "rollout.temperature=0.5")
    assert config.scorers()["teachers.math"].engine == "sglang"


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        (WITHOUT_TEACHERS, "run.seed=1", "teachers is empty: distillation needs one"),
        (GRPO, "teachers.math=/teacher", "teachers have nothing to say in GRPO"),
        (GRPO, "teachers={math: {model: /t}}", "teachers have nothing to say in GRPO"),
        (GRPO, "rewards=none", "rewards is none, but GRPO learns from them"),
        (GRPO, "rollout.samples_per_prompt=1", "rollout.samples_per_prompt is 1, but GRPO compares"),
        (GRPO, "algorithm.mini_batches=3", "algorithm.mini_batches (3) must divide the prompts of a step"),
        (GRPO, "evaluation={prompts: x.jsonl}", "evaluation.prompts measures the distance from teachers, and there"),
        (GRPO, "algorithm.dual_clip=1", "algorithm.dual_clip: Input should be greater than 1"),
        (GRPO, "data.balance=equal", "data.balance: equal is a matter of teachers"),
        (MINIMAL, "algorithm.reward_weight=0.1", "rewards is none, but algorithm.reward_weight learns from them"),
        (MINIMAL, "algorithm.clamp=1", "algorithm.clamp bounds the term of lambda - 1, which is 0"),
        (MINIMAL, "algorithm.type=gopd exact", "algorithm.type: write type: gopd, grpo or sft"),
        (MINIMAL, "algorithm.gradient=exat", "algorithm.gradient: write sampled, exact or top_k (given: 'exat')"),
        (MINIMAL, "algorithm.divergence=forward_kl", "algorithm.divergence: forward_kl needs gradient: exact"),
        (EXACT, "algorithm.divergence=kl", "algorithm.divergence: Input should be 'reverse_kl' or 'forward_kl'"),
        (
            EXACT,
            "teachers.math={model: /t, engine: sglang, server: {options: {chunked_prefill_size: 4096}}}",
            "teachers.math.server.options has chunked-prefill-size: 4096, with which SGLang gives no hidden",
        ),
        (EXACT, "teachers.math.dtype=float32", "teachers.math.dtype is float32 and student.dtype bfloat16"),
        (
            TOP_K,
            "teachers.math.engine=megatron",
            "top_k, for teachers behind SGLang, and teachers.math.engine is megatron",
        ),
        (TOP_K, "algorithm.top_k=0", "algorithm.top_k: Input should be greater than or equal to 1"),
        (
            TOP_K,
            "teachers.math.reference={model: /r, engine: sglang}",
            "the reference of teachers.math has engine: sglang",
        ),
        (TOP_K, "rollout.temperature=0.5", "rollout.temperature is 0.5, but SGLang's log-probs"),
        (EXACT, "algorithm.top_k=5", "unknown key 'algorithm.top_k'; keys here: type, gradient"),
        (GRPO, "algorithm.gradient=exact", "unknown key 'algorithm.gradient'; keys here: type, normalize_std"),
        (SFT, "teachers={t: {model: /t, lambda: 2}}", "teachers.t.lambda weighs a reference, and algorithm.type: sft"),
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
