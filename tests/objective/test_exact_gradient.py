"""One prefix, every token of its vocabulary: the divergence's gradient, of which a sampled token gives an estimate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_gopd.objective import TokenRows, gopd_loss

LAMBDAS = [0.0, 0.25, 0.5, 1.0, 1.25, 1.5, 3.0]
TEMPERATURES = [0.6, 1.0, 1.7]
CLAMP = 0.3  # nats; holds for some tokens and not for others


@pytest.fixture
def logits():
    """Of student, teacher and reference: [3, 7], before any temperature."""
    return torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def target(teacher: Tensor, reference: Tensor, lambda_: float, clamp: float | None = None) -> Tensor:
    """log pi*^lambda pi_ref^(1 - lambda), the second factor's part beyond pi* bounded; not normalised."""
    if clamp is None:
        return lambda_ * teacher + (1 - lambda_) * reference
    return teacher + ((lambda_ - 1) * (teacher - reference)).clamp(-clamp, clamp)


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """KL(left || right) of log-probs."""
    return (left.exp() * (left - right)).sum()


def at_temperature(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The student's logits, to differentiate by, and the log-probs of student, teacher and reference."""
    z = logits[0].clone().requires_grad_()
    teacher, reference = (logits[1:] / temperature).log_softmax(-1)
    return z, (z / temperature).log_softmax(-1), teacher, reference


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_reverse_divergence_moves_a_logit_by_its_token_s_excess(logits, lambda_, temperature):
    """d KL(p || q) / d z_v = p_v (s_v - E_p[s]) / T, s = log p - log q but for a constant."""
    z, student, teacher, reference = at_temperature(logits, temperature)
    wanted = target(teacher, reference, lambda_)
    (gradient,) = torch.autograd.grad(divergence(student, wanted.log_softmax(-1)), z, retain_graph=True)
    p, s = student.exp(), student - wanted
    torch.testing.assert_close(gradient, p * (s - (p * s).sum()) / temperature, rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_forward_divergence_moves_a_logit_by_what_its_token_has_too_much(logits, lambda_, temperature):
    """d KL(q || p) / d z_v = (p_v - q_v) / T."""
    z, student, teacher, reference = at_temperature(logits, temperature)
    q = target(teacher, reference, lambda_).log_softmax(-1)
    (gradient,) = torch.autograd.grad(divergence(q, student), z, retain_graph=True)
    torch.testing.assert_close(gradient, (student.exp() - q.exp()) / temperature, rtol=0, atol=1e-14)


def sampled(student: Tensor, teacher: Tensor, reference: Tensor, lambda_: float, clamp: float | None) -> Tensor:
    """Of every token v: the loss whose gradient is -A_v grad log p_v, weighed by p_v."""
    rows = TokenRows(student.detach().exp(), None, teacher, reference)
    return student * gopd_loss(lambda_, None, clamp=clamp)(student, None, rows).dloss_dlogprobs


@pytest.mark.parametrize("clamp", [None, CLAMP])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_sampled_estimator_s_mean_is_the_exact_gradient(logits, lambda_, temperature, clamp):
    z, student, teacher, reference = at_temperature(logits, temperature)
    q = target(teacher, reference, lambda_, clamp).log_softmax(-1)
    (exact,) = torch.autograd.grad(divergence(student, q), z, retain_graph=True)
    (mean,) = torch.autograd.grad(sampled(student, teacher, reference, lambda_, clamp).sum(), z)
    torch.testing.assert_close(mean, exact, rtol=0, atol=1e-14)


def test_the_clamp_of_these_checks_holds_for_some_tokens_only(logits):
    _, _, teacher, reference = at_temperature(logits, 1.0)
    beyond = (0.25 * (teacher - reference)).abs() > CLAMP
    assert 0 < beyond.sum() < len(beyond)


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_the_sampled_loss_is_the_divergence_but_for_log_z(logits, lambda_):
    """E_p[-A] = KL(p || q) - log Z: it may be negative, as the divergence may not."""
    _, student, teacher, reference = at_temperature(logits, 1.0)
    wanted = target(teacher, reference, lambda_)
    rows = TokenRows(student.detach().exp(), None, teacher, reference)
    expected = divergence(student, wanted.log_softmax(-1)) - wanted.logsumexp(-1)
    torch.testing.assert_close(gopd_loss(lambda_, None)(student, None, rows).loss, expected.detach())
