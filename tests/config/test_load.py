"""A configuration file and overrides -> Config, and back."""

from __future__ import annotations

import pytest

from megatron_gopd.config import to_yaml
from tests.config.minimal import MINIMAL

FULL = """\
run: {name: full, steps: 3, seed: 1, folder: out}
student: {model: /student, layout: {tp: 2, sequence_parallel: true}, dtype: float32}
teachers:
  math: {model: /math, reference: /math-base, prompt: own_template}
  code: {model: /code, reference: {model: /code-base, dtype: float32}, prompt: {suffix: " Think."}}
  hint: {model: /student, prompt: {column: teacher_messages}}
algorithm: {lambda: 1.25, reference: /base, loss_aggregation: token_mean, rollout_correction: null}
data: {train: [a.jsonl, b.parquet], batch_size: 8, chat_template_kwargs: {}, balance: equal}
rollout: {max_response_tokens: 64, temperature: 0.7}
optimizer: {type: sgd, lr: 1e-5, min_lr: 1e-6, schedule: cosine, warmup_steps: 1, betas: [0.9, 0.95]}
evaluation: {prompts: held_out.jsonl}
rewards: math
logging: {wandb: {mode: online}, tensorboard: true}
"""


def test_the_minimal_file_takes_the_defaults(load):
    config = load(MINIMAL)
    assert (config.algorithm.lambda_, config.optimizer.lr, config.rollout.temperature) == (1.0, 1e-5, 1.0)
    assert config.algorithm.rollout_correction.cap == 5.0
    assert config.algorithm.loss_aggregation == "sequence_mean"
    assert config.teachers["math"].prompt == "student_tokens"


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-5", "0.00001"])
def test_a_number_may_be_written_without_a_dot(load, number):
    assert load(MINIMAL + f"optimizer: {{lr: {number}}}").optimizer.lr == 1e-5


def test_e_notation_stays_text_where_it_is_none(load):
    assert load(MINIMAL, "run.name=1e-5x").run.name == "1e-5x"


def test_lambda_is_spelt_lambda(load):
    assert load(MINIMAL + "algorithm: {lambda: 1.25}").algorithm.lambda_ == 1.25


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_to_yaml_reads_back_equal(load, text):
    config = load(text)
    assert load(to_yaml(config)) == config


def test_to_yaml_spells_keys_as_the_file_does(load):
    assert "lambda: 1.25" in to_yaml(load(FULL))


# ---------------------------------------------------------------- overrides
@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optimizer.lr=1e-6", lambda config: config.optimizer.lr == 1e-6),
        ("student.layout.tp=2", lambda config: config.student.layout.tp == 2),
        ("teachers.math.dtype=float32", lambda config: config.teachers["math"].dtype == "float32"),
        ("teachers.code.model=/code", lambda config: config.teachers["code"].model == "/code"),
        ("algorithm.lambda=1.25", lambda config: config.algorithm.lambda_ == 1.25),
        ("algorithm.rollout_correction=null", lambda config: config.algorithm.rollout_correction is None),
        ("data.train=[a.jsonl, b.jsonl]", lambda config: config.data.train == ["a.jsonl", "b.jsonl"]),
        ("teachers.math.prompt={suffix: a=b}", lambda config: config.teachers["math"].prompt.suffix == "a=b"),
        ("algorithm.reference=/base", lambda config: config.algorithm.reference.model == "/base"),
    ],
)
def test_an_override_reaches_any_key(load, override, read):
    assert read(load(MINIMAL, override))


def test_a_later_override_wins(load):
    assert load(MINIMAL, "run.steps=5", "run.steps=7").run.steps == 7


def test_an_override_goes_below_a_model_given_as_a_path(load):
    reference = load(MINIMAL + "algorithm: {reference: /base}", "algorithm.reference.layout.tp=2").algorithm.reference
    assert (reference.model, reference.layout.tp) == ("/base", 2)
