"""The exact objective as a distribution loss: weights, a reward's sampled term, what it tells."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import TokenRows, exact_loss

TOKENS = 4


@pytest.fixture
def rows() -> TokenRows:
    columns = torch.randn(4, TOKENS, generator=torch.Generator().manual_seed(0))
    return TokenRows(torch.tensor([0.1, 0.2, 0.3, 0.4]), *columns[:3], outcome=columns[3])


@pytest.fixture
def values() -> torch.Tensor:
    """divergence, logprobs, entropy"""
    return torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_the_weighted_divergence(rows, values):
    result = exact_loss(1.25, 5.0)(*values, rows)
    assert result.loss == (rows.weights * values[0]).sum()
    torch.testing.assert_close(result.dloss_ddivergence, rows.weights)
    assert result.dloss_dlogprobs is None


def test_a_sampled_action_s_correction_weighs_the_reward_s_term_only(rows, values):
    result = exact_loss(1.25, 2.0, reward_weight=0.5)(*values, rows)
    correction = torch.exp(values[1] - rows.behaviour_logprobs).clamp(max=2.0)
    assert (correction == 2.0).any() and (correction < 2.0).any()
    torch.testing.assert_close(result.dloss_dlogprobs, -rows.weights * 0.5 * rows.outcome * correction)
    torch.testing.assert_close(result.dloss_ddivergence, rows.weights)
    torch.testing.assert_close(result.loss, (rows.weights * values[0]).sum() + result.dloss_dlogprobs.sum())


def test_the_sampled_advantage_is_told_beside_the_divergence(rows, values):
    metrics = exact_loss(1.25, 5.0)(*values, rows).metrics
    gap = rows.teacher_logprobs - values[1] + 0.25 * (rows.teacher_logprobs - rows.reference_logprobs)
    torch.testing.assert_close(metrics["advantage"], gap)
    torch.testing.assert_close(metrics["target_kl"], values[0])
