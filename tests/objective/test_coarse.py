"""Some tokens and a tail, enumerated: what a support of a few tokens makes of the exact gradient."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import coarse_divergence
from megatron_gopd.objective.coarse import with_tail

V, TOP = 7, 3
LAMBDAS = [0.0, 0.5, 1.0, 1.25, 2.0]
KINDS = ["reverse_kl", "forward_kl"]
CLAMPS = [None, 0.3]


@pytest.fixture
def laws():
    """student (logits that ask for a gradient), teacher, reference (log-probs): [5 prefixes, V] float64."""
    logits = torch.randn(3, 5, V, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return logits[0].requires_grad_(), logits[1].log_softmax(-1), logits[2].log_softmax(-1)


def whole(theta, teacher, reference, lambda_, clamp, kind):
    """The divergence over all tokens."""
    beyond = (lambda_ - 1) * (teacher - reference)
    q = (teacher + (beyond if clamp is None else beyond.clamp(-clamp, clamp))).log_softmax(-1)
    one, other = (theta, q) if kind == "reverse_kl" else (q, theta)
    return (one.exp() * (one - other)).sum(-1)


def merged(law, ids):
    """[prefixes, k + 1] log-probs of some tokens and of all others together."""
    inside = torch.zeros_like(law, dtype=torch.bool).scatter(1, ids, True)
    tail = law.masked_fill(inside, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([law.gather(1, ids), tail], 1)


def coarse(laws, ids, *rest, used=None):
    theta, teacher, reference = laws
    picked = [law.gather(1, ids) for law in (theta.log_softmax(-1), teacher, reference)]
    used = torch.ones_like(ids, dtype=torch.bool) if used is None else used
    return coarse_divergence(*picked, used, *rest)[0]


def gradient(value, theta):
    return torch.autograd.grad(value.sum(), theta)[0]


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_it_is_the_divergence_of_the_merged_laws(laws, lambda_, kind, clamp):
    theta, teacher, reference = laws
    ids = teacher.topk(TOP).indices
    found = coarse(laws, ids, lambda_, clamp, kind)
    expected = whole(*(merged(law, ids) for law in (theta.log_softmax(-1), teacher, reference)), lambda_, clamp, kind)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient(found, theta), gradient(expected, theta), rtol=0, atol=1e-14)


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_over_the_whole_vocabulary_it_is_the_exact_gradient(laws, lambda_, kind, clamp):
    theta, teacher, reference = laws
    found = coarse(laws, teacher.topk(V).indices, lambda_, clamp, kind)
    expected = whole(theta.log_softmax(-1), teacher, reference, lambda_, clamp, kind)
    torch.testing.assert_close(gradient(found, theta), gradient(expected, theta), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_it_is_zero_with_no_gradient_where_the_student_is_the_target(laws, lambda_, kind):
    _, teacher, reference = laws
    ids = teacher.topk(TOP).indices
    good, base = merged(teacher, ids), merged(reference, ids)
    target = (lambda_ * good + (1 - lambda_) * base).log_softmax(-1)
    spread = (1.0 * torch.arange(V - TOP)).double().log_softmax(0)  # the tail's tokens in any proportion
    outside = torch.ones_like(teacher, dtype=torch.bool).scatter(1, ids, False)
    theta = torch.empty_like(teacher).scatter(1, ids, target[:, :TOP])
    theta = theta.masked_scatter(outside, target[:, TOP:] + spread).requires_grad_()
    found = coarse((theta, teacher, reference), ids, lambda_, None, kind)
    assert found.abs().max() < 1e-14
    assert gradient(found, theta).abs().max() < 1e-14


def test_merging_tokens_makes_no_divergence_larger(laws):
    theta, teacher, reference = laws
    found = [coarse(laws, teacher.topk(k).indices, 1.0) for k in range(1, V + 1)]
    assert all((more - less > -1e-12).all() for less, more in zip(found, found[1:], strict=False))


def test_as_a_detached_advantage_it_would_teach_nothing(laws):
    theta, teacher, _ = laws
    divergence = coarse(laws, teacher.topk(TOP).indices, 1.0)
    law = theta.log_softmax(-1)
    score = law.detach().exp() * law * -divergence.detach()[:, None]  # all sampled tokens, weighed by their probability
    assert gradient(score, theta).abs().max() < 1e-15
    assert gradient(divergence, theta).abs().max() > 1e-2


def test_a_column_that_is_not_used_counts_for_nothing(laws):
    theta, teacher, _ = laws
    ids = teacher.topk(TOP).indices
    used = torch.tensor([True, False, True]).expand_as(ids)
    expected = coarse(laws, ids[:, [0, 2]], 1.25)
    ids = ids.clone()
    ids[:, 1] = ids[:, 0]
    found = coarse(laws, ids, 1.25, used=used)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(gradient(found, theta), gradient(expected, theta), rtol=0, atol=1e-15)


def test_garbage_in_a_column_that_is_not_used_does_not_spread(laws):
    theta, teacher, reference = laws
    picked = [law[:, :2].clone() for law in (theta.log_softmax(-1), teacher, reference)]
    for column in picked:
        column[:, 1] = -torch.inf
    used = torch.tensor([[True, False]]).expand(5, 2)
    found, tail = coarse_divergence(*picked, used, 1.25)
    assert torch.isfinite(found).all() and torch.isfinite(gradient(found, theta)).all()
    torch.testing.assert_close(tail, 1 - theta.softmax(-1)[:, 0].detach())


@pytest.mark.parametrize("kind", KINDS)
def test_a_tail_below_rounding_keeps_divergence_and_gradient_finite(kind):
    theta = torch.tensor([[0.0, -40.0, -1.0]], requires_grad=True)
    sure = torch.tensor([[1e-7, -40.0]])  # a server's rounding: more than 1 in all
    law = theta.log_softmax(-1)
    found, _ = coarse_divergence(law[:, :2], sure, None, torch.ones(1, 2, dtype=torch.bool), 1.0, None, kind)
    assert torch.isfinite(found).all() and torch.isfinite(gradient(found, theta)).all()
    assert with_tail(sure, torch.ones(1, 2, dtype=torch.bool))[0, -1].exp() == pytest.approx(1e-6, rel=0.1)


def test_lambda_needs_a_reference(laws):
    theta, teacher, _ = laws
    with pytest.raises(ValueError, match="lambda = 1.25 needs the reference"):
        coarse_divergence(theta, teacher, None, torch.ones_like(theta, dtype=torch.bool), 1.25)
