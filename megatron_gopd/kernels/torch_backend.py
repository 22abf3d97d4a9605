"""The backend in plain torch: any dtype and device, block by block over the vocabulary.

bf16 inputs are widened before the GEMM: in bf16 logits a log-prob is off by up to 0.05 nats, and an advantage is a
difference of log-probs. Nothing is kept between the passes: the logits are computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_gopd.kernels.backend import Statistics, Upstream
from megatron_gopd.kernels.tree import merge

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
            rows = _wide(weight[start : start + BLOCK])
            grad = _grad_logits(x @ rows.T / temperature, targets - start, upstream) / temperature
            grad_x.addmm_(grad, rows)
            if grad_weight is not None:
                block = grad_weight[start : start + BLOCK]
                block.add_(grad.T @ x) if add else block.copy_(grad.T @ x)
        return grad_x


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
