"""The token loss: its stated gradient, its value and its sign."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import TokenRows, advantage, gopd_loss, rollout_correction, token_weights

LAMBDAS = [0.0, 0.5, 1.0, 1.25]


@pytest.fixture
def logprobs():
    return -4 * torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    columns = [-4 * torch.rand(9, dtype=torch.float64, generator=generator) for _ in range(3)]
    return TokenRows(token_weights(torch.tensor([2, 4, 3]), "sequence_mean"), *columns)


def ratio_form(logprobs, rows, lambda_, cap):
    """- sum weight w A rho, with rho = pi / stop_gradient(pi): the surrogate, for autograd."""
    gain = advantage(logprobs, rows.teacher_logprobs, rows.reference_logprobs, lambda_)
    correction = 1.0 if cap is None else rollout_correction(logprobs, rows.behaviour_logprobs, cap)
    return -(rows.weights * correction * gain * torch.exp(logprobs - logprobs.detach())).sum()


@pytest.mark.parametrize("cap", [None, 5.0, 0.5])
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_gradient_is_that_of_the_ratio_form(logprobs, rows, lambda_, cap):
    logprobs.requires_grad_()
    surrogate = ratio_form(logprobs, rows, lambda_, cap)
    surrogate.backward()
    result = gopd_loss(lambda_, cap)(logprobs, None, rows)
    torch.testing.assert_close(result.dloss_dlogprobs, logprobs.grad, rtol=0, atol=1e-15)
    torch.testing.assert_close(result.loss, surrogate.detach(), rtol=0, atol=1e-15)


def test_the_gradient_is_minus_weight_correction_advantage(logprobs, rows):
    result = gopd_loss(1.25, 5.0)(logprobs, None, rows)
    gap = rows.teacher_logprobs - logprobs
    gain = gap + 0.25 * (rows.teacher_logprobs - rows.reference_logprobs)
    correction = torch.exp(logprobs - rows.behaviour_logprobs).clamp(max=5.0)
    torch.testing.assert_close(result.dloss_dlogprobs, -rows.weights * correction * gain, rtol=0, atol=1e-15)


def test_at_lambda_1_the_loss_estimates_the_reverse_kl(logprobs, rows):
    result = gopd_loss(1.0, None)(logprobs, None, rows)
    torch.testing.assert_close(result.loss, (rows.weights * (logprobs - rows.teacher_logprobs)).sum())


def test_nothing_of_the_loss_carries_a_graph(logprobs, rows):
    result = gopd_loss(1.25, 5.0)(logprobs.requires_grad_(), None, rows)
    tensors = [result.loss, result.dloss_dlogprobs, *result.metrics.values()]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_the_entropy_is_not_used(logprobs, rows):
    assert gopd_loss(1.25, 5.0)(logprobs, torch.ones(9), rows).dloss_dentropy is None


def test_the_advantage_and_the_correction_are_reported(logprobs, rows):
    metrics = gopd_loss(1.25, 5.0)(logprobs, None, rows).metrics
    gain = advantage(logprobs, rows.teacher_logprobs, rows.reference_logprobs, 1.25)
    assert torch.equal(metrics["advantage"], gain)
    assert torch.equal(metrics["rollout_correction"], rollout_correction(logprobs, rows.behaviour_logprobs, 5.0))


def test_without_correction_the_behaviour_is_not_read(logprobs, rows):
    rows.behaviour_logprobs = None
    assert set(gopd_loss(1.0, None)(logprobs, None, rows).metrics) == {"advantage"}


def test_the_gradient_has_the_dtype_of_the_logprobs(logprobs, rows):
    rows.teacher_logprobs, rows.reference_logprobs = rows.teacher_logprobs.float(), rows.reference_logprobs.float()
    assert gopd_loss(1.25, None)(logprobs.float(), None, rows).dloss_dlogprobs.dtype == torch.float32


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_a_step_makes_a_token_of_positive_advantage_likelier(lambda_):
    student, teacher, reference = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    law, teacher, reference = (logits.log_softmax(0) for logits in (student, teacher, reference))
    for token in range(6):
        theta = student.clone().requires_grad_()
        logprob = theta.log_softmax(0)[token : token + 1]
        rows = TokenRows(torch.ones(1), None, teacher[token : token + 1], reference[token : token + 1])
        result = gopd_loss(lambda_, None)(logprob, None, rows)
        (logprob * result.dloss_dlogprobs).sum().backward()
        moved = (theta - 1e-3 * theta.grad).detach().log_softmax(0)[token] - law[token]
        assert moved * result.metrics["advantage"].item() > 0


def test_a_clamp_bounds_the_term_of_lambda_minus_1_alone(logprobs, rows):
    beyond = rows.teacher_logprobs - rows.reference_logprobs
    assert beyond.abs().max() > 0.4 > beyond.abs().min()
    gain = gopd_loss(2.0, None, clamp=0.4)(logprobs, None, rows).metrics["advantage"]
    expected = (rows.teacher_logprobs - logprobs) + beyond.clamp(-0.4, 0.4)
    torch.testing.assert_close(gain, expected, rtol=0, atol=1e-15)


def test_a_reward_adds_its_weight_times_the_outcome(logprobs, rows):
    rows.outcome = torch.tensor([0.5] * 2 + [-1.0] * 4 + [0.5] * 3, dtype=torch.float64)
    plain, mixed = (gopd_loss(1.25, 5.0, reward_weight=weight)(logprobs, None, rows) for weight in (0.0, 0.3))
    added = mixed.metrics["advantage"] - plain.metrics["advantage"]
    torch.testing.assert_close(added, 0.3 * rows.outcome, rtol=0, atol=1e-15)
    correction = mixed.metrics["rollout_correction"]
    expected = plain.dloss_dlogprobs - rows.weights * correction * 0.3 * rows.outcome
    torch.testing.assert_close(mixed.dloss_dlogprobs, expected, rtol=0, atol=1e-15)


def test_each_token_has_the_lambda_of_its_teacher():
    student, teacher, reference = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    lambdas = torch.tensor([1.0, 1.25, 0.0, 2.0])
    rows = TokenRows(torch.ones(4), None, teacher, reference, lambda_=lambdas)
    gain = gopd_loss(3.0, None)(student, None, rows).metrics["advantage"]
    for token, lambda_ in enumerate(lambdas.tolist()):
        alone = TokenRows(torch.ones(1), None, teacher[token : token + 1], reference[token : token + 1])
        expected = gopd_loss(lambda_, None)(student[token : token + 1], None, alone).metrics["advantage"]
        torch.testing.assert_close(gain[token : token + 1], expected)
