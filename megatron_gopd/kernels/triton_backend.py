"""The backend of CUDA tensors: launches of triton_kernels.py. What ran on which GPU: docs/gpu.md.

The gradients go through d loss / d logits in the dtype of the inputs: in place of what the forward pass kept, or, from
logits computed again, BLOCK columns at a time. Both GEMMs then accumulate in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from megatron_gopd.kernels import triton_kernels as kernels
from megatron_gopd.kernels.backend import Statistics, Upstream
from megatron_gopd.kernels.triton_distribution import TritonDistribution
from megatron_gopd.kernels.triton_products import into_both
from megatron_gopd.kernels.triton_tiles import FUSED, MERGE, launch, logits_like, programs, tile_of

BLOCK = 8192  # vocabulary rows whose logits are computed again at a time


class Kept(NamedTuple):
    exp: Tensor  # [tokens, rows] exp(z - peak of its part); `gradients` writes over it
    peak: Tensor  # [parts, tokens]


class TritonBackend(TritonDistribution):
    """On the current GPU, from sm_80 on; `capability` is 90 for sm_90."""

    def __init__(self, capability: int):
        self.capability = capability

    @staticmethod
    def takes(hidden: Tensor) -> bool:
        return hidden.dtype in (torch.bfloat16, torch.float32)

    def statistics(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool) -> Statistics:
        (tokens, inner), rows = hidden.shape, len(weight)
        tile = tile_of(hidden.dtype, self.capability)
        parts = hidden.new_empty((3, triton.cdiv(rows, tile.part), tokens), dtype=torch.float32)
        merged = hidden.new_empty((3, tokens), dtype=torch.float32)
        target_logit = hidden.new_full((tokens,), -torch.inf, dtype=torch.float32)
        exp = logits_like(hidden, rows) if keep else hidden.new_empty((1, 1))
        if tokens:
            kernels.statistics_kernel[(programs(tokens, rows, tile),)](
                hidden, weight, targets.contiguous(), *parts, target_logit, exp,
                tokens, inner, rows, hidden.stride(0), weight.stride(0), exp.stride(0), 1 / temperature,
                KEEP=keep, EVEN=inner % tile.inner == 0, **launch(tile),
            )  # fmt: skip
            kernels.merge_kernel[(triton.cdiv(tokens, 32),)](*parts, merged, tokens, parts.shape[1], **MERGE)
        return Statistics(*merged, target_logit, Kept(exp, parts[0]) if keep else None)

    def gradients(
        self,
        kept: Kept | None,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        upstream: Upstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
        columns = _per_token(targets, upstream)
        block = BLOCK if kept is None else len(weight)
        buffer = logits_like(hidden, min(block, len(weight))) if kept is None else kept.exp
        for start in range(0, len(weight), block):
            rows = weight[start : start + block]
            grad = buffer[:, : len(rows)]
            if kept is None:
                self._gradient(hidden, rows, columns, start, temperature, grad)
            else:
                self._gradient_of_kept(kept, columns, temperature)
            of_rows = None if grad_weight is None else grad_weight[start : start + block]
            into_both(grad, hidden, rows, grad_hidden, of_rows, start == 0, add, self.capability)
        return grad_hidden

    def _gradient(
        self, hidden: Tensor, rows: Tensor, columns: list[Tensor], first: int, temperature: float, grad: Tensor
    ) -> None:
        tile, (tokens, inner) = tile_of(hidden.dtype, self.capability), hidden.shape
        if tokens:
            kernels.gradient_kernel[(programs(tokens, len(rows), tile),)](
                hidden, rows, *columns, grad,
                tokens, inner, len(rows), hidden.stride(0), rows.stride(0), grad.stride(0), first, 1 / temperature,
                ENTROPY=_wants_entropy(columns), EVEN=inner % tile.inner == 0, **launch(tile),
            )  # fmt: skip

    def _gradient_of_kept(self, kept: Kept, columns: list[Tensor], temperature: float) -> None:
        (tokens, rows), tile = kept.exp.shape, tile_of(kept.exp.dtype, self.capability).of_part()
        if tokens:
            kernels.kept_gradient_kernel[(programs(tokens, rows, tile),)](
                *kept, *columns, tokens, rows, kept.exp.stride(0), 1 / temperature,
                ENTROPY=_wants_entropy(columns), BM=tile.rows, BN=tile.columns, num_warps=tile.warps, **FUSED,
            )  # fmt: skip


def _per_token(targets: Tensor, upstream: Upstream) -> list[Tensor]:
    """The [tokens] arguments of both gradient kernels, in their order."""
    log_sum, logprobs, entropy, slope = (column.float().contiguous() for column in upstream[:4])
    at_target = -slope * torch.expm1(logprobs)  # slope (1 - p): near p = 1 the difference would cancel
    of_entropy = entropy.new_empty(0)
    if upstream.grad_entropy is not None:
        of_entropy = upstream.grad_entropy.float().contiguous()
        at_target -= of_entropy * logprobs.exp() * (logprobs + entropy)
    return [targets.contiguous(), log_sum, entropy, slope, of_entropy, at_target]


def _wants_entropy(columns: list[Tensor]) -> bool:
    return columns[4].numel() > 0
