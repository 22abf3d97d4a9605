"""Token weights are a property of the batch, never of how it is cut."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.objective import TokenRows, gopd_loss, token_weights

LENGTHS = torch.tensor([1, 4, 2, 13, 7, 1, 5])
VOCABULARY = 11


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_weights_sum_to_1(aggregation):
    assert abs(token_weights(LENGTHS, aggregation).sum().item() - 1) < 1e-15


def test_sequence_mean_is_a_mean_of_token_means():
    losses = torch.arange(6, dtype=torch.float64)
    expected = (losses[:1].mean() + losses[1:5].mean() + losses[5:].mean()) / 3
    weights = token_weights(torch.tensor([1, 4, 1]), "sequence_mean")
    torch.testing.assert_close((weights * losses).sum(), expected)


def test_token_mean_is_a_mean_over_tokens():
    losses = torch.arange(6, dtype=torch.float64) ** 2
    weights = token_weights(torch.tensor([1, 4, 1]), "token_mean")
    torch.testing.assert_close((weights * losses).sum(), losses.mean())


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_an_empty_response_is_refused(aggregation):
    with pytest.raises(ValueError, match="at least one response token"):
        token_weights(torch.tensor([3, 0, 2]), aggregation)


def a_batch(aggregation: str):
    """A table of logits [V, V] read by previous token, and every token column of the batch."""
    generator = torch.Generator().manual_seed(1)
    total = int(LENGTHS.sum())
    columns = [-3 * torch.rand(total, dtype=torch.float64, generator=generator) for _ in range(3)]
    previous, tokens = (torch.randint(VOCABULARY, (total,), generator=generator) for _ in range(2))
    table = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, generator=generator, requires_grad=True)
    return table, previous, tokens, TokenRows(token_weights(LENGTHS, aggregation), *columns)


def loss_and_gradient(batch, micro_batches: list[list[int]]):
    """The loss and its gradient, summed over micro-batches of rows."""
    table, previous, tokens, known = batch
    bounds = [0, *LENGTHS.cumsum(0).tolist()]
    table.grad, loss = torch.zeros_like(table), 0.0
    for rows in micro_batches:
        pick = torch.cat([torch.arange(bounds[row], bounds[row + 1]) for row in rows])
        logprobs = table[previous[pick]].log_softmax(-1).gather(1, tokens[pick, None])[:, 0]
        part = gopd_loss(1.25, 5.0)(logprobs, None, known.select(pick))
        (logprobs * part.dloss_dlogprobs).sum().backward()
        loss += part.loss.item()
    return loss, table.grad


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_do_not_depend_on_the_cut(aggregation, seed):
    batch = a_batch(aggregation)
    whole_loss, whole_gradient = loss_and_gradient(batch, [list(range(len(LENGTHS)))])
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(LENGTHS), generator=generator).tolist()
    cuts = sorted(torch.randperm(len(LENGTHS) - 1, generator=generator)[: seed + 1].add(1).tolist())
    pieces = [order[first:last] for first, last in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    loss, gradient = loss_and_gradient(batch, pieces)
    assert abs(loss - whole_loss) < 1e-12
    torch.testing.assert_close(gradient, whole_gradient, rtol=0, atol=1e-12)
