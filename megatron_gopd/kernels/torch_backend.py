"""The backend in plain torch: any dtype and device, block by block over the vocabulary.

bf16 inputs are widened before the GEMM: in bf16 logits a log-prob is off by up to 0.05 nats, and an advantage is a
difference of log-probs. Nothing is kept between the passes: the logits are computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_gopd.kernels.backend import DistributionStatistics, DistributionUpstream, Heads, Statistics, Upstream
from megatron_gopd.kernels.target import Target
from megatron_gopd.kernels.tree import Triple, merge, merge_sides

BLOCK = 8192  # vocabulary rows at a time


class TorchBackend:
    def statistics(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool) -> Statistics:
        x = _wide(hidden)
        peak, target_logit = x.new_full((2, len(x)), -torch.inf)
        total, weighted = x.new_zeros((2, len(x)))
        for start in range(0, len(weight), BLOCK):
            logits = x @ _wide(weight[start : start + BLOCK]).T / temperature
            block_peak = logits.amax(dim=1)
            shifted = logits - block_peak[:, None]
            exp = shifted.exp()
            of_block = block_peak, exp.sum(dim=1), (exp * shifted).sum(dim=1)
            peak, total, weighted = merge((peak, total, weighted), of_block)
            column, here = _columns(targets - start, logits.shape[1])
            target_logit = torch.where(here, logits.gather(1, column[:, None])[:, 0], target_logit)
        return Statistics(peak, total, weighted, target_logit)

    def gradients(
        self,
        kept: object | None,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        upstream: Upstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        x = _wide(hidden)
        grad_x = torch.zeros_like(x)
        for start in range(0, len(weight), BLOCK):
            logits = x @ _wide(weight[start : start + BLOCK]).T / temperature
            grad = _grad_logits(logits, targets - start, upstream) / temperature
            _into_both(grad, x, weight, start, grad_x, grad_weight, add)
        return grad_x

    def distribution_statistics(
        self, heads: Heads, targets: Tensor, temperature: float, keep: bool
    ) -> DistributionStatistics:
        found, target_logit = None, None
        for start in range(0, len(heads.weight[0]), BLOCK):
            logits, mixture = _distribution_logits(heads, start, temperature)
            of_block = _sides(logits, mixture, heads.target)
            forward = heads.target.divergence == "forward_kl"
            found = of_block if found is None else merge_sides(found, of_block, forward)
            column, here = _columns(targets - start, mixture.shape[1])
            picked = torch.stack([block.gather(1, column[:, None])[:, 0] for block in logits])
            target_logit = torch.where(here, picked, -torch.inf if target_logit is None else target_logit)
        return DistributionStatistics(*found, target_logit)

    def distribution_gradients(
        self,
        kept: object | None,
        heads: Heads,
        targets: Tensor,
        temperature: float,
        upstream: DistributionUpstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        x, weight = _wide(heads.hidden[0]), heads.weight[0]
        grad_x = torch.zeros_like(x)
        for start in range(0, len(weight), BLOCK):
            (logits, *_), mixture = _distribution_logits(heads, start, temperature)
            forward = heads.target.divergence == "forward_kl"
            grad = _grad_distribution(logits, mixture, targets - start, upstream, forward) / temperature
            _into_both(grad, x, weight, start, grad_x, grad_weight, add)
        return grad_x


def _into_both(
    grad: Tensor, x: Tensor, weight: Tensor, start: int, grad_x: Tensor, grad_weight: Tensor | None, add: bool
) -> None:
    """The gradient of one block's logits, into those of hidden and weight."""
    grad_x.addmm_(grad, _wide(weight[start : start + BLOCK]))
    if grad_weight is not None:
        block = grad_weight[start : start + BLOCK]
        block.add_(grad.T @ x) if add else block.copy_(grad.T @ x)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _columns(targets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Each target's column in a block of `width` columns, and whether it lies in it."""
    here = (targets >= 0) & (targets < width)
    return targets.clamp(0, width - 1), here


def _grad_logits(logits: Tensor, targets: Tensor, upstream: Upstream) -> Tensor:
    """d loss / d logits of one block; see Backend.gradients."""
    column, here = _columns(targets, logits.shape[1])
    log_p = logits - upstream.log_sum[:, None]
    coefficient = upstream.grad_logprobs[:, None]
    if upstream.grad_entropy is not None:
        coefficient = coefficient + upstream.grad_entropy[:, None] * (log_p + upstream.entropy[:, None])
    grad = -log_p.exp() * coefficient
    # g (1 - p) as -g expm1(log p), from the log-prob the loss saw
    at_target = -upstream.grad_logprobs * torch.expm1(upstream.logprobs)
    if upstream.grad_entropy is not None:
        at_target -= upstream.grad_entropy * upstream.logprobs.exp() * (upstream.logprobs + upstream.entropy)
    return grad.scatter_(
        1, column[:, None], torch.where(here, at_target, grad.gather(1, column[:, None])[:, 0])[:, None]
    )


def _distribution_logits(heads: Heads, start: int, temperature: float) -> tuple[list[Tensor], Tensor]:
    """The logits of every head over one block, and D; [tokens, rows] each."""
    logits = [
        _wide(hidden) @ _wide(weight[start : start + BLOCK]).T / temperature
        for hidden, weight in zip(heads.hidden, heads.weight, strict=True)
    ]
    return logits, heads.target.mixture(logits[1:], heads.log_sums)


def _sides(logits: list[Tensor], mixture: Tensor, target: Target) -> Triple:
    """DistributionStatistics' columns of one block."""
    alone = target.reference is None  # D is the teacher's: its exponentials are there
    columns, shifted, exps = [], [], []
    for block in logits if alone else [*logits, mixture]:
        peak = block.amax(dim=1)
        shifted.append(block - peak[:, None])
        exps.append(shifted[-1].exp())
        columns.append((peak, exps[-1].sum(dim=1), (exps[-1] * shifted[-1]).sum(dim=1)))
    leading, trailing = (-1, 0) if target.divergence == "forward_kl" else (0, -1)
    gap = (exps[leading] * (shifted[leading] - shifted[trailing])).sum(dim=1)
    rows = [*columns, columns[-1]] if alone else columns
    peak, total, weighted = (torch.stack(column) for column in zip(*rows, strict=True))
    return peak, total, torch.cat([weighted[:-1], gap[None]])


def _grad_distribution(
    logits: Tensor, mixture: Tensor, targets: Tensor, upstream: DistributionUpstream, forward: bool
) -> Tensor:
    """d loss / d logits of one block; see Backend.distribution_gradients."""
    grad = (logits - upstream.log_sum[:, None]).exp()
    if forward:
        grad -= (mixture - upstream.mixture_log_sum[:, None]).exp()
    else:
        grad *= logits - mixture - upstream.gap[:, None]
    grad *= upstream.grad_divergence[:, None]
    if upstream.grad_logprobs is None:
        return grad
    column, here = _columns(targets, logits.shape[1])
    # c (1 - p) as -c expm1(log p), from the log-prob the loss saw
    at_target = grad.gather(1, column[:, None])[:, 0] - upstream.grad_logprobs * torch.expm1(upstream.logprobs)
    grad -= upstream.grad_logprobs[:, None] * (logits - upstream.own_log_sum[:, None]).exp()
    return grad.scatter_(
        1, column[:, None], torch.where(here, at_target, grad.gather(1, column[:, None])[:, 0])[:, None]
    )
