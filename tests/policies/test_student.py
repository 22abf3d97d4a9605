"""Optimizer steps under every layout, against plain transformers and torch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.plain_student import plain_steps
from tests.policies.steps_on_ranks import take_all, take_steps
from tests.ranks import on_ranks
from tests.tiny_models import NAMES

TWO_RANKS = ["qwen2-untied", "qwen3-tied"]
LAYOUTS = {"tp": "tp=2", "dp": "", "tp+sp": "tp=2,sequence_parallel=true", "pp": "pp=2"}
SGD = {"type": "sgd", "lr": 1e-2}
CASES = {
    "sgd": SGD | {"clip_grad": 1e6},
    "sgd clipped": SGD | {"clip_grad": 0.05},
    "sgd unclipped": SGD | {"clip_grad": 0.0},
    "adam": {"type": "adam", "lr": 1e-3, "clip_grad": 1.0, "eps": 1e-5, "steps": 3},
}
WEIGHTS = 1e-5


@pytest.fixture(scope="module")
def plain(models):
    """{(model, case): what plain torch does}"""
    return {(name, case): plain_steps(models[name], **{"steps": 1} | CASES[case]) for name in NAMES for case in CASES}


@pytest.fixture(scope="module")
def alone_steps(models, plain, alone):
    return take_all(models, [""], CASES)


@pytest.fixture(scope="module")
def two_ranks_steps(models, plain):
    folders = {name: models[name] for name in TWO_RANKS}
    return on_ranks(2, take_all, folders=folders, layouts=list(LAYOUTS.values()), cases=CASES)


def check_weights(weights: dict, expected: dict) -> None:
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=WEIGHTS, err_msg=name)


def check_update(update, expected) -> None:
    """The scalars, and every token column."""
    assert update.loss == pytest.approx(expected.loss, abs=1e-5)
    assert update.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    for column in ("logprobs", "entropy", "advantage"):
        for values, wanted in zip(getattr(update, column), getattr(expected, column), strict=True):
            np.testing.assert_allclose(values, wanted, rtol=0, atol=2e-5, err_msg=column)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_one_rank_moves_the_weights_as_torch_does(alone_steps, plain, name, case):
    check_weights(alone_steps[name, "", case][1], plain[name, case][1])


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_reports_what_torch_sees(alone_steps, plain, name):
    check_update(alone_steps[name, "", "sgd"][0][0], plain[name, "sgd"][0][0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_move_the_weights_as_torch_does(two_ranks_steps, plain, name, layout, case):
    check_weights(two_ranks_steps[name, LAYOUTS[layout], case][1], plain[name, case][1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_report_what_torch_sees(two_ranks_steps, plain, name, layout):
    check_update(two_ranks_steps[name, LAYOUTS[layout], "sgd"][0][0], plain[name, "sgd"][0][0])


def test_the_steps_are_worth_comparing(models, plain):
    """Checks the checker: a step moves weights by far more than the tolerance, and the clip bites."""
    before = plain_steps(models["qwen3-tied"], 0, **CASES["sgd"])[1]
    moved = {case: largest_gap(plain["qwen3-tied", case][1], before) for case in CASES}
    assert min(moved.values()) > 20 * WEIGHTS
    assert moved["sgd clipped"] < 0.5 * moved["sgd"]


def largest_gap(ones: dict, others: dict) -> float:
    return max(float(abs(ones[name] - others[name]).max()) for name in ones)
