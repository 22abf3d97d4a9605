"""The truncated importance weight between rollout engine and trainer."""

from __future__ import annotations

import math

import torch

from megatron_gopd.objective import rollout_correction


def weight(log_ratio: float, cap: float) -> float:
    behaviour = torch.tensor([-30.0], dtype=torch.float64)
    return rollout_correction(behaviour + log_ratio, behaviour, cap).item()


def test_it_is_1_where_the_engines_agree():
    logprobs = torch.tensor([-0.1, -3.0, -40.0])
    assert torch.equal(rollout_correction(logprobs, logprobs.clone(), 5.0), torch.ones(3))


def test_it_is_the_probability_ratio_below_the_cap():
    assert math.isclose(weight(math.log(2.5), cap=5.0), 2.5, rel_tol=1e-12)


def test_a_token_the_trainer_likes_less_weighs_less():
    assert math.isclose(weight(math.log(0.25), cap=5.0), 0.25, rel_tol=1e-12)


def test_it_is_capped():
    assert weight(math.log(7.0), cap=5.0) == 5.0


def test_the_log_ratio_is_clamped_above():
    assert math.isclose(weight(29.0, cap=1e30), math.exp(20), rel_tol=1e-12)


def test_the_log_ratio_is_clamped_below():
    assert math.isclose(weight(-300.0, cap=5.0), math.exp(-20), rel_tol=1e-12)


def test_it_is_detached():
    student = torch.tensor([-1.0], requires_grad=True)
    assert not rollout_correction(student, torch.tensor([-2.0]), 5.0).requires_grad
