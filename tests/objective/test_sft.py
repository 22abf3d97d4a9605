"""The negative log-likelihood."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import TokenRows, sft_loss, token_weights


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_value_and_gradient_are_those_of_cross_entropy(aggregation):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 11, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(11, (6,), generator=generator)
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    expected = each.mean() if aggregation == "token_mean" else (each[:2].mean() + each[2:].mean()) / 2
    expected.backward()
    wanted, logits.grad = logits.grad, None
    logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    result = sft_loss()(logprobs, None, TokenRows(token_weights(torch.tensor([2, 4]), aggregation)))
    (logprobs * result.dloss_dlogprobs).sum().backward()
    torch.testing.assert_close(result.loss, expected.detach(), rtol=0, atol=1e-15)
    torch.testing.assert_close(logits.grad, wanted, rtol=0, atol=1e-15)
