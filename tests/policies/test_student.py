"""Optimizer steps under every layout, against plain transformers and torch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.plain_student import plain_steps
from tests.policies.steps_on_ranks import take_all
from tests.ranks import on_ranks
from tests.tiny_models import NAMES

TWO_RANKS = ["qwen2-untied", "qwen3-tied"]
LAYOUTS = {"tp": "tp=2", "dp": "", "tp+sp": "tp=2,sequence_parallel=true", "pp": "pp=2"}
LINEAR = {"type": "adam", "lr": 1e-2, "eps": 1.0}  # an eps this large makes the step lr * gradient, nearly
CASES = {
    "linear": LINEAR | {"clip_grad": 1e6},
    "clipped": LINEAR | {"clip_grad": 1.0},
    "unclipped": LINEAR | {"clip_grad": 0.0},
    "adam": {"type": "adam", "lr": 1e-3, "eps": 1e-5, "clip_grad": 1.0},
}
STEPS = 2
TWO_RANKS_CASES = {case: CASES[case] for case in ("linear", "adam")}
WEIGHTS = 1e-5


@pytest.fixture(scope="module")
def plain(models):
    """{(model, case): what plain torch does}"""
    return {(name, case): plain_steps(models[name], STEPS, **CASES[case]) for name in NAMES for case in CASES}


@pytest.fixture(scope="module")
def alone_steps(models, plain, alone):
    return take_all(models, [""], CASES, STEPS)


@pytest.fixture(scope="module")
def two_ranks_steps(models, plain):
    folders = {name: models[name] for name in TWO_RANKS}
    return on_ranks(2, take_all, folders=folders, layouts=list(LAYOUTS.values()), cases=TWO_RANKS_CASES, steps=STEPS)


def check_weights(weights: dict, expected: dict) -> None:
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=WEIGHTS, err_msg=name)


def check_update(update, expected) -> None:
    """The scalars, and every token column."""
    assert update.loss == pytest.approx(expected.loss, abs=1e-5)
    assert update.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    columns = {"logprobs": update.logprobs, "entropy": update.entropy, "advantage": update.metrics["advantage"]}
    for column, found in columns.items():
        for values, wanted in zip(found, getattr(expected, column), strict=True):
            np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5, err_msg=column)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_one_rank_moves_the_weights_as_torch_does(alone_steps, plain, name, case):
    check_weights(alone_steps[name, "", case][1], plain[name, case][1])


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_reports_what_torch_sees(alone_steps, plain, name):
    check_update(alone_steps[name, "", "linear"][0][0], plain[name, "linear"][0][0])


@pytest.mark.parametrize("case", TWO_RANKS_CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_move_the_weights_as_torch_does(two_ranks_steps, plain, name, layout, case):
    check_weights(two_ranks_steps[name, LAYOUTS[layout], case][1], plain[name, case][1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_report_what_torch_sees(two_ranks_steps, plain, name, layout):
    check_update(two_ranks_steps[name, LAYOUTS[layout], "linear"][0][0], plain[name, "linear"][0][0])


def test_the_steps_are_worth_comparing(models, plain):
    """Checks the checker: a step moves weights by far more than the tolerance, and the clip bites."""
    before = plain_steps(models["qwen3-tied"], 0, **CASES["linear"])[1]
    moved = {case: largest_gap(plain["qwen3-tied", case][1], before) for case in CASES}
    assert min(moved.values()) > 20 * WEIGHTS
    assert moved["clipped"] < 0.5 * moved["linear"]


def largest_gap(ones: dict, others: dict) -> float:
    return max(float(abs(ones[name] - others[name]).max()) for name in ones)


def test_under_offload_gradients_and_masters_are_away_before_the_first_step(models, alone):
    """Servers on the same GPU start in between."""
    from megatron_gopd.mcore.optimizer import optimizer_tensors
    from megatron_gopd.policies.student import Student
    from tests.policies.steps_on_ranks import settings

    student = Student(settings(models["qwen3-tied"], dtype="bfloat16", student={"offload": True}, **CASES["adam"]))
    held = [*optimizer_tensors(student._optimizer), *(p.main_grad for p in student.model.module.parameters())]
    assert len(held) > 2
    assert {tensor.untyped_storage().nbytes() for tensor in held} == {0}
