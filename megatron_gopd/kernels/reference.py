"""The naive LM head: logits, softmax and autograd, in the dtype of its inputs or wider. Every test compares with it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def naive_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_range: tuple[int, int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """linear_logprob with this rank's logits materialised; float64 inputs are computed in float64.

    The gradient of hidden is this rank's share, as there.
    """
    wide = torch.promote_types(hidden.dtype, torch.float32)
    first, last = vocab_range or (0, len(weight))
    logits = hidden.to(wide) @ weight[: last - first].to(wide).T / temperature
    log_sum = log_sum_exp(logits, group)
    column = targets - first
    here = (column >= 0) & (column < last - first)
    picked = (
        logits.gather(1, column.clamp(0, last - first - 1)[:, None])[:, 0]
        if last > first
        else torch.zeros_like(log_sum)
    )
    target_logit, found = sum_over(torch.stack([torch.where(here, picked, 0.0), here.to(wide)]), group)
    if (found == 0).any():
        raise ValueError(f"target {int(targets[found == 0][0])} lies outside the vocabulary")
    log_p = logits - to_shards(log_sum, group)[:, None]
    mean_logit = sum_over((torch.exp(log_p) * logits).sum(dim=1), group)
    return target_logit - log_sum, log_sum - mean_logit


def log_sum_exp(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[tokens] over the columns of all ranks, differentiable."""
    peak = _peak(logits.detach(), group)
    return peak + sum_over(torch.exp(logits - peak[:, None]).sum(dim=1), group).log()


def sum_over(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the ranks of a group, every one of which goes on to compute the same loss from it."""
    return _SumOver.apply(values, group)


def to_shards(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """values, of which every rank of a group goes on to use its own part: their gradient is the sum over the ranks."""
    return _ToShards.apply(values, group)


def _peak(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    peak = logits.amax(dim=1) if logits.shape[1] else logits.new_full((len(logits),), -torch.inf)
    if group is not None:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=group)
    return peak


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, group):
        values = values.clone()
        if group is not None:
            dist.all_reduce(values, group=group)
        return values

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class _ToShards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, group):
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad):
        if ctx.group is not None:
            grad = grad.clone()
            dist.all_reduce(grad, group=ctx.group)
        return grad, None
