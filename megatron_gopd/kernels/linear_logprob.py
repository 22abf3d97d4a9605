"""log-softmax of the LM head at the target tokens, block by block over the vocabulary, float32 throughout.

The forward pass keeps an online log-sum-exp, so memory is [tokens, block]; the backward pass computes each block of
logits again (four GEMMs in all). bf16 inputs are widened before the GEMM: in bf16 logits a log-prob is off by up
to 0.05 nats, and an advantage is a difference of log-probs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

BLOCK = 8192  # vocabulary columns at a time


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_range: tuple[int, int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution softmax(hidden @ weight.T / temperature).

    Args:
        hidden: [tokens, hidden] final hidden states, the same on every rank of `group`.
        weight: [rows, hidden] this rank's rows of the LM head.
        targets: [tokens] global token ids.
        temperature: the sampling temperature.
        vocab_range: [first, last) token ids that `weight`'s rows stand for; rows past last - first are padding.
            Default: all rows, from 0.
        group: tensor-parallel group over which the vocabulary is cut; None: `weight` is the whole head.

    Returns:
        logprobs [tokens], entropy [tokens]: float32 (float64 for float64 inputs), nats; both differentiable with
        respect to hidden and weight. In `group`, the gradient of hidden is this rank's share: sum it over the group.

    Raises:
        ValueError: a target outside the vocabulary, or shapes that do not fit.
    """
    first, last = vocab_range or (0, weight.shape[0])
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} must be [tokens, h] and [V, h]")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {tuple(targets.shape)} must be [tokens] = [{hidden.shape[0]}]")
    return _LinearLogprob.apply(hidden, weight, targets, temperature, first, last, group)


def linear_log_softmax(
    hidden: Tensor,
    weight: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The whole distribution, for exact divergences in evaluation: [tokens, vocab_size] log-probs, float32.

    `weight` [rows, hidden] is this rank's shard of the head; rows past `vocab_size` are padding and dropped.
    """
    logits = hidden.float() @ weight.float().T / temperature
    if group is not None and group.size() > 1:
        shards = [torch.empty_like(logits) for _ in range(group.size())]
        dist.all_gather(shards, logits.contiguous(), group=group)
        logits = torch.cat(shards, dim=1)
    return logits[:, :vocab_size].log_softmax(dim=-1)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, first, last, group):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        x = hidden.to(wide) / temperature
        log_sum, mean_logit, target_logit = _softmax_statistics(x, weight, targets, first, last, group)
        logprobs, entropy = target_logit - log_sum, log_sum - mean_logit
        ctx.save_for_backward(hidden, weight, targets, log_sum, entropy)
        ctx.constants = temperature, first, last
        return logprobs, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropy):
        hidden, weight, targets, log_sum, entropy = ctx.saved_tensors
        temperature, first, last = ctx.constants
        x = hidden.to(log_sum.dtype) / temperature
        grad_x, grad_weight = torch.zeros_like(x), torch.zeros_like(weight, dtype=x.dtype)
        for start, rows in _blocks(weight, last - first, x.dtype):
            grad = _grad_logits(x @ rows.T, start + first, targets, log_sum, entropy, grad_logprobs, grad_entropy)
            grad_x.addmm_(grad, rows)
            grad_weight[start : start + len(rows)] = grad.T @ x
        return (grad_x / temperature).to(hidden.dtype), grad_weight.to(weight.dtype), *[None] * 5


def _blocks(weight: Tensor, valid: int, dtype: torch.dtype):
    """(first row, rows) of each vocabulary block, without the padding."""
    for start in range(0, valid, BLOCK):
        yield start, weight[start : min(start + BLOCK, valid)].to(dtype)


def _softmax_statistics(x, weight, targets, first, last, group):
    """log sum exp, E[logit] and the target's logit, [tokens] each, over the whole vocabulary."""
    peak = x.new_full((len(x),), -torch.inf)
    total, weighted, target_logit, found = (x.new_zeros(len(x)) for _ in range(4))
    for start, rows in _blocks(weight, last - first, x.dtype):
        logits = x @ rows.T
        higher = torch.maximum(peak, logits.amax(dim=1))
        shrink = torch.exp(peak - higher)
        exp = torch.exp(logits - higher[:, None])
        total = total * shrink + exp.sum(dim=1)
        weighted = weighted * shrink + (exp * logits).sum(dim=1)
        peak = higher
        column, here = _columns(targets, start + first, len(rows))
        target_logit += torch.where(here, logits.gather(1, column[:, None])[:, 0], 0.0)
        found += here
    if group is not None and group.size() > 1:
        highest = peak.clone()
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        shrink = torch.exp(peak - highest)
        sums = torch.stack((total * shrink, weighted * shrink, target_logit, found))
        dist.all_reduce(sums, group=group)
        (total, weighted, target_logit, found), peak = sums, highest
    if not found.all():
        raise ValueError(f"target {int(targets[found == 0][0])} lies outside the vocabulary")
    return peak + total.log(), weighted / total, target_logit


def _columns(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Each target's column in a block of `width` columns from token id `start`, and whether it lies in it."""
    column = targets - start
    here = (column >= 0) & (column < width)
    return column.clamp(0, width - 1), here


def _grad_logits(logits, start, targets, log_sum, entropy, grad_logprobs, grad_entropy):
    """d/dlogits of grad_logprobs . logprobs + grad_entropy . entropy for one block.

    d log p_y / d z_j = [j = y] - p_j;  d H / d z_j = -p_j (log p_j + H).
    """
    log_p = logits - log_sum[:, None]
    p = log_p.exp()
    grad = -p * (grad_logprobs[:, None] + grad_entropy[:, None] * (log_p + entropy[:, None]))
    column, here = _columns(targets, start, logits.shape[1])
    grad.scatter_add_(1, column[:, None], torch.where(here, grad_logprobs, 0.0)[:, None])
    return grad
