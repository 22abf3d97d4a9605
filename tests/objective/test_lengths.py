"""Responses of different lengths: which weights keep the per-prefix target, and for which gradient."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from megatron_gopd.objective import TokenRows, gopd_loss, token_weights

LAMBDAS = [0.0, 0.25, 0.5, 1.0, 1.25, 1.5, 3.0]
AGGREGATIONS = ["sequence_mean", "token_mean"]
DIVERGENCES = ["reverse_kl", "forward_kl"]
END = 0


class Tree(NamedTuple):
    """Every response there is: END ends it, and so does the last step. Its tokens lie end to end."""

    lengths: Tensor  # [responses]
    response: Tensor  # [tokens]
    prefix: Tensor  # [tokens], a row of a policy
    token: Tensor  # [tokens]


def tree(vocabulary: int, steps: int) -> Tree:
    """Of a policy [prefixes, vocabulary] whose first row is of the empty prefix."""
    followed = [p for n in range(steps) for p in itertools.product(range(1, vocabulary), repeat=n)]
    responses = [(*p, v) for p in followed for v in range(vocabulary) if v == END or len(p) == steps - 1]
    rows = [(i, followed.index(y[:t]), y[t]) for i, y in enumerate(responses) for t in range(len(y))]
    return Tree(torch.tensor([len(y) for y in responses]), *torch.tensor(rows).T)


TOY = tree(2, 2)  # E, C E, C C
TALL = tree(3, 3)  # 15 responses over 7 prefixes


def reached(tree: Tree, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [..., tokens], and the probability of each token's response, detached."""
    logprobs = policy.log_softmax(-1)[..., tree.prefix, tree.token]
    of_response = torch.zeros(*logprobs.shape[:-1], len(tree.lengths), dtype=logprobs.dtype)
    return logprobs, of_response.index_add(-1, tree.response, logprobs.detach()).exp()[..., tree.response]


def weights(tree: Tree, aggregation: str) -> Tensor:
    """[tokens]: what a token of each response weighs in a large batch, times the batch's size."""
    return len(tree.lengths) * token_weights(tree.lengths, aggregation)


def sampled_ascent(tree, policy, frozen, lambda_, aggregation, clamp=None, outcome=None) -> Tensor:
    """E over responses of the update of gopd_loss, in the policy's logits; `outcome` has a weight of 1 nat."""
    policy = policy.detach().requires_grad_()
    logprobs, probability = reached(tree, policy)
    teacher, reference = (reached(tree, law)[0] for law in frozen)
    rows = TokenRows(weights(tree, aggregation) * probability, None, teacher, reference, outcome=outcome)
    loss = gopd_loss(lambda_, None, clamp=clamp, reward_weight=0.0 if outcome is None else 1.0)
    (descent,) = torch.autograd.grad((logprobs * loss(logprobs, None, rows).dloss_dlogprobs).sum(), policy)
    return -descent


def exact_ascent(tree, policy, q, divergence, given, outcome=None) -> Tensor:
    """E over responses, whose tokens weigh `given`, of the update by the divergence at every prefix and the outcome."""
    policy = policy.detach().requires_grad_()
    logprobs, probability = reached(tree, policy)
    pi, q = policy.log_softmax(-1), q.log_softmax(-1)
    left, right = (pi, q) if divergence == "reverse_kl" else (q, pi)
    loss = (left.exp() * (left - right)).sum(-1)[..., tree.prefix]
    if outcome is not None:
        loss = loss - outcome * logprobs
    (descent,) = torch.autograd.grad((given * probability * loss).sum(), policy)
    return -descent


def target(frozen, lambda_) -> Tensor:
    """Logits of pi*^lambda pi_ref^(1 - lambda) / Z; lambda_: a number or [lambdas, 1, 1]."""
    teacher, reference = (law.log_softmax(-1) for law in frozen)
    return lambda_ * teacher + (1 - lambda_) * reference


@pytest.fixture
def frozen():
    """Teacher and reference over TALL: [2, 7, 3]."""
    return 0.5 * torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def toy():
    """Teacher and reference over TOY, alike at both prefixes; at lambda = 2 their target is (.2, .8), with Z = 2."""
    return torch.tensor([[0.6, 0.4], [0.9, 0.1]], dtype=torch.float64).log()[:, None].expand(2, 2, 2)


# The sampled estimator


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_with_one_weight_for_all_tokens_the_sampled_update_vanishes_at_the_target(frozen, lambda_):
    assert sampled_ascent(TALL, target(frozen, lambda_), frozen, lambda_, "token_mean").abs().max() < 1e-15


@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_under_sequence_mean_it_vanishes_there_at_lambda_0_and_1_only(frozen, lambda_):
    update = sampled_ascent(TALL, target(frozen, lambda_), frozen, lambda_, "sequence_mean").abs().max()
    assert update < 1e-15 if lambda_ in (0, 1) else update > 1e-4


def test_two_tokens_show_it(toy):
    """log Z times the covariance of 1/|y| and the token: log 2 (.16 - .08)."""
    update = sampled_ascent(TOY, target(toy, 2.0), toy, 2.0, "sequence_mean")
    expected = 0.08 * math.log(2) * torch.tensor([[1, -1], [0, 0]], dtype=torch.float64)
    torch.testing.assert_close(update, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("lambda_", "sign"), [(0.25, -1), (0.5, -1), (1.25, 1), (1.5, 1), (3.0, 1)])
def test_it_ends_sooner_beyond_lambda_1_and_later_below(toy, lambda_, sign):
    assert sign * sampled_ascent(TOY, target(toy, lambda_), toy, lambda_, "sequence_mean")[0, END] > 1e-3


def test_where_two_tokens_settle_under_sequence_mean(toy):
    """At .270, where 1/|y| A_t is equal for both tokens, and not at .2."""
    end = (math.sqrt(0.41) - 0.1) / 2
    settled = torch.tensor([[end, 1 - end], [0.2, 0.8]], dtype=torch.float64).log()
    assert sampled_ascent(TOY, settled, toy, 2.0, "sequence_mean").abs().max() < 1e-15


def finite_batch(responses: int) -> float:
    """The ascent at the target of TOY, lambda = 2, of the first token's END, under token_mean, over all batches."""
    total = 0.0
    for lengths in itertools.product((1, 2), repeat=responses):
        probability = math.prod(0.2 if length == 1 else 0.8 for length in lengths)
        of_token = token_weights(torch.tensor(lengths), "token_mean")[0].item()
        total += probability * of_token * math.log(2) * sum((length == 1) - 0.2 for length in lengths)
    return total


def test_in_a_finite_batch_token_mean_leaves_one_part_in_its_size():
    """A response is part of its batch's length: alone it is weighed as under sequence_mean."""
    left = [size * finite_batch(size) for size in range(1, 7)]
    assert left[0] == pytest.approx(0.08 * math.log(2))
    assert all(0.034 < later < sooner for sooner, later in itertools.pairwise(left))


# The exact gradient


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("weighed", [*AGGREGATIONS, "anyhow"])
def test_the_exact_update_vanishes_at_the_target_under_any_positive_weights(frozen, weighed, divergence):
    generator = torch.Generator().manual_seed(1)
    anyhow = 0.1 + torch.rand(len(TALL.token), dtype=torch.float64, generator=generator)
    given = anyhow if weighed == "anyhow" else weights(TALL, weighed)
    q = target(frozen, torch.tensor(LAMBDAS, dtype=torch.float64)[:, None, None])
    assert exact_ascent(TALL, q, q, divergence, given).abs().max() < 1e-15


def per_prefix(tree: Tree, policy: Tensor, of_token: Tensor) -> Tensor:
    """[..., prefixes, 1]: the sum over responses of probability times `of_token` [..., tokens]."""
    total = torch.zeros(policy.shape[:-1], dtype=policy.dtype)
    return total.index_add(-1, tree.prefix, reached(tree, policy)[1] * of_token)[..., None]


def settle(tree: Tree, start: Tensor, given: Tensor, ascent) -> Tensor:
    """Where gradient steps end, each over its logit's Fisher information: weight of the prefix times probability."""
    policy = start
    for _ in range(50):
        policy = policy + 0.5 * ascent(policy) / (per_prefix(tree, policy, given) * policy.softmax(-1))
    return policy.softmax(-1)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_descent_by_the_exact_gradient_reaches_the_target(frozen, aggregation, divergence):
    """From one start, for all lambdas at once."""
    q, given = target(frozen, torch.tensor(LAMBDAS, dtype=torch.float64)[:, None, None]), weights(TALL, aggregation)
    settled = settle(TALL, torch.zeros_like(q), given, lambda policy: exact_ascent(TALL, policy, q, divergence, given))
    torch.testing.assert_close(settled, q.softmax(-1), rtol=0, atol=1e-12)


def test_plain_gradient_descent_reaches_it_too(toy):
    q = target(toy, torch.tensor(LAMBDAS, dtype=torch.float64)[:, None, None])
    policy = torch.zeros_like(q)
    for _ in range(200):
        policy = policy + 4.0 * exact_ascent(TOY, policy, q, "reverse_kl", weights(TOY, "sequence_mean"))
    torch.testing.assert_close(policy.softmax(-1), q.softmax(-1), rtol=0, atol=1e-4)


# With a clamp, and with a reward


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.25, 3.0])
def test_with_a_clamp_the_target_s_second_factor_is_bounded(frozen, lambda_):
    teacher, reference = (law.log_softmax(-1) for law in frozen)
    bounded = teacher + ((lambda_ - 1) * (teacher - reference)).clamp(-0.1, 0.1)
    assert sampled_ascent(TALL, bounded, frozen, lambda_, "token_mean", clamp=0.1).abs().max() < 1e-15
    assert sampled_ascent(TALL, target(frozen, lambda_), frozen, lambda_, "token_mean", clamp=0.1).abs().max() > 1e-4


REWARDS = 0.5 * torch.randn(15, dtype=torch.float64, generator=torch.Generator().manual_seed(2))  # nats


def centred(policy: Tensor) -> Tensor:
    """[tokens]: the reward of each token's response less the policy's mean; every response starts with one token."""
    rewards = REWARDS[TALL.response]
    return rewards - per_prefix(TALL, policy.detach(), rewards)[0]


def credit(policy: Tensor, given: Tensor) -> Tensor:
    """Q [prefixes, vocabulary]: a token's mean centred reward, each response weighing what `given` says."""
    total = torch.zeros(7, 3, dtype=policy.dtype)
    _, probability = reached(TALL, policy)
    total.index_put_((TALL.prefix, TALL.token), given * probability * centred(policy), accumulate=True)
    return total / policy.softmax(-1) / per_prefix(TALL, policy, given)


def test_with_a_reward_the_sampled_limit_is_the_target_times_exp_of_its_mean(frozen):
    given = weights(TALL, "token_mean")

    def ascent(policy):
        return sampled_ascent(TALL, policy, frozen, 1.5, "token_mean", outcome=centred(policy))

    settled = settle(TALL, torch.zeros(7, 3, dtype=torch.float64), given, ascent)
    expected = (target(frozen, 1.5) + credit(settled.log(), given)).softmax(-1)
    torch.testing.assert_close(settled, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_with_a_reward_so_is_the_exact_limit_and_the_mean_is_weighed(frozen, aggregation):
    q, given = target(frozen, 1.5), weights(TALL, aggregation)

    def ascent(policy):
        return exact_ascent(TALL, policy, q, "reverse_kl", given, centred(policy))

    settled = settle(TALL, torch.zeros_like(q), given, ascent)
    torch.testing.assert_close(settled, (q + credit(settled.log(), given)).softmax(-1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_with_a_reward_the_forward_divergence_has_another_limit(frozen, aggregation):
    """q / (1 - (Q - its mean)), while that is positive."""
    q, given = target(frozen, 1.5), weights(TALL, aggregation)

    def ascent(policy):
        return exact_ascent(TALL, policy, q, "forward_kl", given, centred(policy))

    settled = settle(TALL, torch.zeros_like(q), given, ascent)
    gain = credit(settled.log(), given)
    expected = q.softmax(-1) / (1 - gain + (settled * gain).sum(-1, keepdim=True))
    torch.testing.assert_close(settled, expected, rtol=0, atol=1e-7)
