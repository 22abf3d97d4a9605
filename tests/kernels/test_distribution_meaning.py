"""What linear_distribution_loss must mean, in float64: the divergence, its gradient, and where that vanishes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_gopd.kernels import Target, TargetHead, linear_distribution_loss, naive_distribution_loss
from megatron_gopd.objective import DistributionLoss, TokenRows
from tests.kernels.distribution_case import TEMPERATURE, Case, rows_of, values_of

FUNCTIONS = [linear_distribution_loss, naive_distribution_loss]


def only_divergence(divergence, logprobs, entropy, rows):
    return DistributionLoss((rows.weights * divergence).sum(), rows.weights, None, {})


def logits_of(hidden, weight):
    return hidden @ weight.T / TEMPERATURE


@pytest.mark.parametrize("clamp", [None, 0.4])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("lambda_", [0.0, 1.0, 1.25, 2.0])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_divergence_is_that_of_the_law_it_states(function, lambda_, divergence, clamp):
    case = Case(lambda_=lambda_, divergence=divergence, clamp=clamp)
    hidden, weight, targets, target = case.tensors()
    found = function(hidden, weight, targets, only_divergence, rows_of(9), target, temperature=TEMPERATURE)
    log_p = logits_of(hidden, weight)[:, :21].log_softmax(-1)
    star, ref = (logits_of(head.hidden, head.weight).log_softmax(-1)[:, :21] for head in _both(case))
    if clamp is None:
        log_q = (lambda_ * star + (1 - lambda_) * ref).log_softmax(-1)
    else:
        log_q = (star + ((lambda_ - 1) * (star - ref)).clamp(-clamp, clamp)).log_softmax(-1)
    one, two = (log_p, log_q) if divergence == "reverse_kl" else (log_q, log_p)
    torch.testing.assert_close(found.divergence, (one.exp() * (one - two)).sum(-1), rtol=0, atol=1e-12)


def _both(case):
    """Teacher and reference, which at lambda 1 the target does not hold."""
    target = dataclasses.replace(case, lambda_=2.0).tensors()[3]
    return target.teacher, target.reference


@pytest.mark.parametrize("function", FUNCTIONS)
def test_log_probs_are_of_each_heads_own_rows(function):
    hidden, weight, targets, target = Case().tensors()
    found = function(hidden, weight, targets, only_divergence, rows_of(9), target, temperature=TEMPERATURE)
    heads = (hidden, weight), *((head.hidden, head.weight) for head in target.heads.values())
    for name, head in zip(("logprobs", "teacher_logprobs", "reference_logprobs"), heads, strict=True):
        expected = logits_of(*head).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        torch.testing.assert_close(values_of(found)[name], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["one_pass", "recompute"])
def test_the_loss_sees_the_targets_log_probs_of_the_sampled_token(mode):
    seen = []

    def loss(divergence, logprobs, entropy, rows):
        seen.append((rows.teacher_logprobs, rows.reference_logprobs))
        return only_divergence(divergence, logprobs, entropy, rows)

    hidden, weight, targets, target = Case().tensors()
    found = linear_distribution_loss(hidden, weight, targets, loss, rows_of(9), target, mode=mode)
    torch.testing.assert_close(seen[0], (found.teacher_logprobs, found.reference_logprobs))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_gradient_is_the_mean_of_the_sampled_estimators(function):
    """Over every token v ~ p: -A_v d log p_v, with A_v = log q_v - log p_v."""
    case = Case(tokens=1, rows=(21, 21, 21))
    hidden, weight, targets, target = case.tensors()
    weight.requires_grad_()
    loss = function(hidden, weight, targets, only_divergence, rows_of(1), target, temperature=TEMPERATURE).loss
    exact = torch.autograd.grad(loss / rows_of(1).weights[0], weight)[0]
    log_p = logits_of(hidden, weight).log_softmax(-1)[0]
    teacher, reference = (logits_of(head.hidden, head.weight).log_softmax(-1)[0] for head in target.heads.values())
    law, gain = log_p.detach().exp(), (1.25 * teacher - 0.25 * reference - log_p).detach()
    sampled = torch.autograd.grad(-(law * gain * log_p).sum(), weight)[0]
    torch.testing.assert_close(exact, sampled, rtol=0, atol=1e-6)  # rows_of is float32


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("mode", ["one_pass", "recompute"])
def test_at_the_target_the_gradient_is_zero_under_any_weights(mode, divergence):
    generator = torch.Generator().manual_seed(0)
    hidden, one, two = (torch.randn(n, 6, dtype=torch.float64, generator=generator) for n in (9, 23, 23))
    weight = (1.25 * one - 0.25 * two).requires_grad_()
    heads = (TargetHead(hidden, rows, 23) for rows in (one, two))
    target = Target(*heads, 1.25, 23, divergence=divergence)
    rows = TokenRows(torch.rand(9, dtype=torch.float64, generator=generator))
    found = linear_distribution_loss(
        hidden, weight, torch.zeros(9, dtype=torch.int64), only_divergence, rows, target, mode=mode
    )
    found.loss.backward()
    assert found.divergence.abs().max() < 1e-13
    assert weight.grad.abs().max() < 1e-13


@pytest.mark.parametrize("mode", ["one_pass", "recompute"])
def test_a_head_that_is_the_embedding_too_gets_both_gradients(mode):
    case = Case(sampled=False)
    hidden, weight, targets, target = case.tensors()

    def gradient(function, **settings):
        tied = weight.clone().requires_grad_()
        states = torch.tanh(tied[targets] + hidden)
        loss = function(states, tied, targets, case.loss, rows_of(9), target, temperature=TEMPERATURE, **settings).loss
        return torch.autograd.grad(loss, tied)[0]

    found, expected = gradient(linear_distribution_loss, mode=mode), gradient(naive_distribution_loss)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("early", [False, True])
def test_main_grad_receives_the_gradient_of_weight(early):
    case = Case(tokens=30, dtype=torch.float32)
    hidden, weight, targets, target = case.tensors()
    weight, main_grad = weight.requires_grad_(), torch.ones(weight.shape)
    found = linear_distribution_loss(
        hidden, weight, targets, case.loss, rows_of(30), target, temperature=TEMPERATURE, main_grad=main_grad,
        main_grad_scale=1.0 if early else None,
    )  # fmt: skip
    assert bool((main_grad == 1).all()) != early  # never written by the forward pass unless asked
    found.loss.backward()
    assert weight.grad is None
    torch.testing.assert_close(main_grad - 1, case.expected()[2].float(), rtol=1e-4, atol=1e-4)
