"""One step, one categorical: expectation of the update, gradient of the objective and fixed point are one thing."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import TokenRows, gopd_loss

LAMBDAS = [0.0, 0.25, 0.5, 1.0, 1.25, 1.5, 3.0]


@pytest.fixture
def laws():
    """teacher, reference: [5] log-probs."""
    logits = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return logits.log_softmax(-1)


def expected_descent(theta, teacher, reference, lambda_):
    """E over y ~ pi_theta of the loss gradient with respect to theta, exactly: every token weighed by its law."""
    logprobs = theta.log_softmax(0)
    rows = TokenRows(logprobs.detach().exp(), None, teacher, reference)
    result = gopd_loss(lambda_, None)(logprobs, None, rows)
    return torch.autograd.grad((logprobs * result.dloss_dlogprobs).sum(), theta)[0]


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_expected_update_is_the_gradient_of_the_objective(laws, lambda_):
    teacher, reference = laws
    theta = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(4), requires_grad=True)
    law = theta.log_softmax(0)
    objective = (law.exp() * (lambda_ * (teacher - reference) - (law - reference))).sum()
    (ascent,) = torch.autograd.grad(objective, theta)
    assert ascent.abs().max() > 1e-2
    torch.testing.assert_close(-expected_descent(theta, teacher, reference, lambda_), ascent, rtol=0, atol=1e-15)


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_expected_update_vanishes_at_the_fixed_point(laws, lambda_):
    teacher, reference = laws
    theta = (lambda_ * teacher + (1 - lambda_) * reference).requires_grad_()
    assert expected_descent(theta, teacher, reference, lambda_).abs().max() < 1e-15


def test_the_expected_update_does_not_vanish_at_the_teacher_beyond_lambda_1(laws):
    teacher, reference = laws
    theta = teacher.clone().requires_grad_()
    assert expected_descent(theta, teacher, reference, 1.25).abs().max() > 1e-2
