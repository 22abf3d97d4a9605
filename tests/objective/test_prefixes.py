"""Several steps: discount 0 has its target per prefix, and that is not the sequence-level one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from megatron_gopd.objective import TokenRows, gopd_loss

V = 3
Policy = list[Tensor]  # step t -> logits [V**t prefixes, V]


def random_policy(steps: int, seed: int, scale: float = 1.0) -> Policy:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(V**t, V, dtype=torch.float64, generator=generator) for t in range(steps)]


def token_logprobs(policy: Policy) -> Tensor:
    """[V**T sequences, T]: log pi(y_t | y_<t) of every sequence there is."""
    sequences = torch.tensor(list(itertools.product(range(V), repeat=len(policy))))
    columns, prefix = [], torch.zeros(len(sequences), dtype=torch.long)
    for t, logits in enumerate(policy):
        columns.append(logits.log_softmax(-1)[prefix, sequences[:, t]])
        prefix = prefix * V + sequences[:, t]
    return torch.stack(columns, 1)


def expected_ascent(theta: Policy, teacher: Policy, reference: Policy, lambda_: float) -> Policy:
    """E over y ~ pi_theta of the exact update direction of gopd_loss: all sequences, weighed by their probability."""
    logprobs = token_logprobs(theta)
    probability = logprobs.detach().sum(1, keepdim=True).exp().expand_as(logprobs)
    known = [token_logprobs(policy).flatten() for policy in (teacher, reference)]
    result = gopd_loss(lambda_, None)(logprobs.flatten(), None, TokenRows(probability.flatten(), None, *known))
    return torch.autograd.grad(-(logprobs.flatten() * result.dloss_dlogprobs).sum(), theta)


def objective_of_prefixes(theta: Policy, teacher: Policy, reference: Policy, lambda_: float) -> Tensor:
    """Sum over prefixes of p(prefix), detached, times the objective of the next token."""
    total, reached = 0.0, torch.ones(1, dtype=torch.float64)
    for mine, good, base in zip(theta, teacher, reference, strict=True):
        law, good, base = (logits.log_softmax(-1) for logits in (mine, good, base))
        of_prefix = (law.exp() * (lambda_ * (good - base) - (law - base))).sum(1)
        total = total + (reached * of_prefix).sum()
        reached = (reached[:, None] * law.detach().exp()).flatten()
    return total


def objective_of_sequences(theta: Policy, teacher: Policy, reference: Policy, lambda_: float) -> Tensor:
    mine, good, base = (token_logprobs(policy) for policy in (theta, teacher, reference))
    return (mine.sum(1).exp() * (lambda_ * (good - base) - (mine - base)).sum(1)).sum()


def per_prefix_target(teacher: Policy, reference: Policy, lambda_: float) -> Policy:
    """pi*^lambda pi_ref^(1 - lambda) / Z(prefix)."""
    return [
        (lambda_ * good.log_softmax(-1) + (1 - lambda_) * base.log_softmax(-1)).softmax(-1)
        for good, base in zip(teacher, reference, strict=True)
    ]


def first_token_of_sequence_target(teacher: Policy, reference: Policy, lambda_: float) -> Tensor:
    """First-token law of pi*^lambda pi_ref^(1 - lambda) / Z, normalised over whole sequences."""
    good, base = (token_logprobs(policy).sum(1) for policy in (teacher, reference))
    return (lambda_ * good + (1 - lambda_) * base).softmax(0).reshape(V, -1).sum(1)


def gap(ones: Policy, others: Policy) -> float:
    return max((one - other).abs().max().item() for one, other in zip(ones, others, strict=True))


@pytest.fixture
def policies():
    """theta, teacher, reference over three steps."""
    theta, *frozen = (random_policy(3, seed) for seed in range(3))
    return [logits.requires_grad_() for logits in theta], *frozen


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0, 1.25, 3.0])
def test_the_expected_update_is_the_gradient_prefix_by_prefix(policies, lambda_):
    expected = torch.autograd.grad(objective_of_prefixes(*policies, lambda_), policies[0])
    assert gap(expected_ascent(*policies, lambda_), expected) < 1e-14


@pytest.mark.parametrize("lambda_", [0.0, 1.0, 1.25])
def test_the_expected_update_has_no_return_to_go(policies, lambda_):
    of_sequences = torch.autograd.grad(objective_of_sequences(*policies, lambda_), policies[0])
    assert gap(expected_ascent(*policies, lambda_), of_sequences) > 1e-2


def test_return_to_go_changes_every_step_but_the_last(policies):
    of_sequences = torch.autograd.grad(objective_of_sequences(*policies, 1.25), policies[0])
    assert gap(expected_ascent(*policies, 1.25)[-1:], of_sequences[-1:]) < 1e-14


@pytest.mark.parametrize("lambda_", [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
def test_gradient_ascent_reaches_the_per_prefix_target(lambda_):
    theta, teacher, reference = (random_policy(2, seed, scale=0.5) for seed in range(3))
    for _ in range(600):
        theta = [logits.detach().requires_grad_() for logits in theta]
        update = expected_ascent(theta, teacher, reference, lambda_)
        theta = [logits + 2.0 * step for logits, step in zip(theta, update, strict=True)]
    reached = [logits.detach().softmax(-1) for logits in theta]
    assert gap(reached, per_prefix_target(teacher, reference, lambda_)) < 1e-6


def test_at_lambda_3_the_first_token_differs_from_the_sequence_target():
    teacher, reference = random_policy(2, 1), random_policy(2, 2)
    per_prefix = per_prefix_target(teacher, reference, 3.0)[0][0]
    assert (per_prefix - first_token_of_sequence_target(teacher, reference, 3.0)).abs().max() > 0.05


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_at_lambda_0_and_1_both_targets_agree(lambda_):
    teacher, reference = random_policy(2, 1), random_policy(2, 2)
    per_prefix = per_prefix_target(teacher, reference, lambda_)[0][0]
    torch.testing.assert_close(per_prefix, first_token_of_sequence_target(teacher, reference, lambda_))


@pytest.mark.parametrize("lambda_", [0.0, 1.0, 3.0])
def test_the_sequence_target_is_where_the_sequence_objective_is_flat(lambda_):
    """Checks the checker: the other target above is the optimum of Eq. 12."""
    teacher, reference = random_policy(2, 1), random_policy(2, 2)
    good, base = (token_logprobs(policy).sum(1) for policy in (teacher, reference))
    law = (lambda_ * good + (1 - lambda_) * base).softmax(0).reshape(V, V)
    theta = [law.sum(1).log()[None].requires_grad_(), law.log().requires_grad_()]
    flat = torch.autograd.grad(objective_of_sequences(theta, teacher, reference, lambda_), theta)
    assert gap(flat, [torch.zeros_like(logits) for logits in theta]) < 1e-14
