"""GRPO's token loss against autograd of its formula, and what each clip does."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import TokenRows, grpo_loss, token_weights

TOKENS = 400


@pytest.fixture(scope="module")
def logprobs():
    return -4 * torch.rand(TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def rows(logprobs):
    """Old log-probs around the new ones, so that every clip holds somewhere; advantages of both signs."""
    generator = torch.Generator().manual_seed(1)

    def near(spread: float):
        return logprobs + spread * torch.randn(TOKENS, dtype=torch.float64, generator=generator)

    return TokenRows(
        token_weights(torch.tensor([TOKENS // 4, TOKENS - TOKENS // 4]), "sequence_mean"),
        behaviour_logprobs=near(0.5),
        reference_logprobs=near(1.0),
        old_logprobs=near(0.8),
        outcome=torch.randn(TOKENS, dtype=torch.float64, generator=generator),
    )


def formula(logprobs, rows, *, dual=3.0, kl=0.0, cap=None):
    """The docstring, term by term, for autograd."""
    ratio, gain = torch.exp(logprobs - rows.old_logprobs), rows.outcome
    loss = torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.2))
    if dual is not None:
        loss = torch.where(gain < 0, torch.minimum(loss, -gain * dual), loss)
    if cap is not None:
        loss = loss * torch.exp(rows.old_logprobs - rows.behaviour_logprobs).clamp(max=cap)
    gap = rows.reference_logprobs - logprobs
    return (rows.weights * (loss + kl * (gap.exp() - gap - 1).clamp(max=10))).sum()


@pytest.mark.parametrize(
    "asked", [{}, {"dual": None}, {"kl": 0.1}, {"cap": 1.5}, {"kl": 0.1, "cap": 1.5}], ids=lambda asked: "-".join(asked)
)
def test_value_and_gradient_are_those_of_the_formula(logprobs, rows, asked):
    given = logprobs.clone().requires_grad_()
    expected = formula(given, rows, **asked)
    expected.backward()
    names = {"dual": "dual_clip", "kl": "kl_coefficient", "cap": "correction_cap"}
    keywords = {"correction_cap": None} | {names[name]: value for name, value in asked.items()}
    result = grpo_loss(**keywords)(given, None, rows)
    torch.testing.assert_close(result.loss, expected.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(result.dloss_dlogprobs, given.grad, rtol=0, atol=1e-15)
    assert not result.dloss_dlogprobs.requires_grad


def test_every_clip_holds_somewhere_in_these_rows(logprobs, rows):
    ratio, gain = torch.exp(logprobs - rows.old_logprobs), rows.outcome
    clipped = grpo_loss(correction_cap=None)(logprobs, None, rows).metrics["clip_fraction"].bool()
    expected = ((gain > 0) & (ratio > 1.2)) | ((gain < 0) & ((ratio < 0.8) | (ratio > 3)))
    assert torch.equal(clipped, expected)
    assert all((case & clipped).any() for case in ((gain > 0) & (ratio > 1.2), (gain < 0) & (ratio > 3)))


def test_on_policy_the_ratio_is_1_and_the_gradient_minus_weight_advantage(logprobs, rows):
    fresh = TokenRows(rows.weights, rows.behaviour_logprobs, outcome=rows.outcome)
    result = grpo_loss(correction_cap=None)(logprobs, None, fresh)
    torch.testing.assert_close(result.dloss_dlogprobs, -rows.weights * rows.outcome, rtol=0, atol=1e-15)
    assert not result.metrics["clip_fraction"].any()


def test_the_k3_estimate_is_the_kl_in_expectation():
    """Enumerated over one categorical law: E_theta[k3] = KL(theta || ref)."""
    theta, reference = (
        torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).log_softmax(0) for n in (2, 3)
    )
    rows = TokenRows(theta.exp(), theta, reference_logprobs=reference, outcome=torch.zeros(9, dtype=torch.float64))
    result = grpo_loss(kl_coefficient=1.0)(theta, None, rows)
    torch.testing.assert_close(result.loss, (theta.exp() * (theta - reference)).sum(), rtol=0, atol=1e-14)


def low_var_kl(logprobs, reference):
    """As verl has it; NeMo RL bounds input and output alike."""
    kl = torch.clamp(reference - logprobs, min=-20, max=20)
    return torch.clamp(torch.exp(kl) - kl - 1, min=-10, max=10)


def test_k3_is_bounded_as_in_verl_and_its_gradient_is_0_beyond():
    logprobs = torch.zeros(601, dtype=torch.float64, requires_grad=True)
    reference = torch.linspace(-30, 30, 601, dtype=torch.float64)
    weights, nothing = torch.ones_like(reference), torch.zeros_like(reference)
    expected = low_var_kl(logprobs, reference)
    (slope,) = torch.autograd.grad(expected.sum(), logprobs)
    rows = TokenRows(weights, reference_logprobs=reference, outcome=nothing)
    result = grpo_loss(kl_coefficient=1.0, correction_cap=None)(logprobs, None, rows)
    torch.testing.assert_close(result.metrics["reference_kl"], expected.detach(), rtol=0, atol=0)
    torch.testing.assert_close(result.dloss_dlogprobs, slope, rtol=0, atol=0)
    assert (slope[(reference > 0.1) & (reference < 2.6)] < 0).all()
    assert (slope[reference > 2.7] == 0).all()


def test_the_gradient_of_k3_is_that_of_the_kl_from_the_reference():
    """Enumerated: E_theta[d k3] = d KL(ref || theta), which is not d KL(theta || ref), though that is k3's mean."""
    generator = torch.Generator().manual_seed(2)
    reference, logits = torch.randn(2, 9, dtype=torch.float64, generator=generator)
    reference, theta = reference.log_softmax(0), logits.requires_grad_().log_softmax(0)
    rows = TokenRows(theta.detach().exp(), reference_logprobs=reference, outcome=torch.zeros_like(reference))
    slope = grpo_loss(kl_coefficient=1.0, correction_cap=None)(theta, None, rows).dloss_dlogprobs
    from_reference = (reference.exp() * (reference - theta)).sum()
    from_theta = (theta.exp() * (theta - reference)).sum()
    gradient, forward, reverse = (
        torch.autograd.grad(scalar, logits, retain_graph=True)[0]
        for scalar in ((theta * slope).sum(), from_reference, from_theta)
    )
    torch.testing.assert_close(gradient, forward, rtol=0, atol=1e-15)
    assert (gradient - reverse).abs().max() > 0.05
