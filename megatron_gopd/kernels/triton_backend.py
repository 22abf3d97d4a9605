"""The backend of CUDA tensors: launches of triton_kernels.py. What ran on which GPU: docs/gpu.md.

What the forward pass keeps, exp(z - offset) in the dtype of the inputs, IS d loss / d logits but for a factor a row and
the target's column, as long as the loss does not use the entropy: the factor goes to the small operands of the two
products, and no pass over tokens x vocabulary comes between. Logits that are computed again give d loss / d logits
BLOCK columns at a time. Both products accumulate in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from megatron_gopd.kernels import triton_kernels as kernels
from megatron_gopd.kernels.backend import Statistics, Upstream
from megatron_gopd.kernels.triton_distribution import TritonDistribution
from megatron_gopd.kernels.triton_operands import operands
from megatron_gopd.kernels.triton_products import into_both
from megatron_gopd.kernels.triton_tiles import FUSED, MERGE, logits_like, programs, tile_of

BLOCK = 8192  # vocabulary rows whose logits are computed again at a time
ROWS = 32  # tokens of a program that asks each for its factor
SAMPLE = 256  # vocabulary rows whose highest logit is a row's offset


class Kept(NamedTuple):
    exp: Tensor  # [tokens, rows] exp(z - offset), see triton_kernels._base; `gradients` writes into it
    peak: Tensor  # [parts, tokens]
    offset: Tensor  # [tokens]


class TritonBackend(TritonDistribution):
    """On the current GPU, from sm_80 on; `capability` is 90 for sm_90, `processors` how many it has."""

    def __init__(self, capability: int, processors: int):
        self.capability, self.processors = capability, processors

    @staticmethod
    def takes(hidden: Tensor) -> bool:
        return hidden.dtype in (torch.bfloat16, torch.float32)

    def statistics(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool) -> Statistics:
        tokens, rows = len(hidden), len(weight)
        tile = tile_of(hidden.dtype, self.capability)
        parts = hidden.new_empty((3, triton.cdiv(rows, tile.part), tokens), dtype=torch.float32)
        merged = hidden.new_empty((3, tokens), dtype=torch.float32)
        target_logit = hidden.new_full((tokens,), -torch.inf, dtype=torch.float32)
        exp = logits_like(hidden, rows) if keep else None
        offset = None
        if tokens:
            given = targets.contiguous(), parts, target_logit, 1 / temperature
            if keep:
                self._statistics(hidden, weight[:SAMPLE], *given, None, None)
                offset = parts[0, : triton.cdiv(min(rows, SAMPLE), tile.part)].amax(0)
            self._statistics(hidden, weight, *given, offset, exp)
            kernels.merge_kernel[(triton.cdiv(tokens, 32),)](*parts, merged, tokens, parts.shape[1], **MERGE)
        return Statistics(*merged, target_logit, Kept(exp, parts[0], offset) if keep else None)

    def _statistics(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        parts: Tensor,
        target_logit: Tensor,
        inverse_temperature: float,
        offset: Tensor | None,
        exp: Tensor | None,
    ) -> None:
        asked = operands(hidden, weight, self.capability, self.processors)
        keep = exp is not None
        exp = exp if keep else hidden.new_empty((1, 1))
        kernels.statistics_kernel[(asked.programs,)](
            asked.hidden, asked.weight, targets, *parts, target_logit, offset if keep else target_logit, exp,
            len(hidden), hidden.shape[1], len(weight), hidden.stride(0), weight.stride(0), exp.stride(0),
            inverse_temperature, KEEP=keep, **asked.constants,
        )  # fmt: skip

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
            factor = None
            if kept is None:
                self._gradient(hidden, rows, columns, start, temperature, grad)
            else:
                factor = self._gradient_of_kept(kept, columns, temperature)
            of_rows = None if grad_weight is None else grad_weight[start : start + block]
            into_both(grad, hidden, rows, grad_hidden, of_rows, start == 0, add, self.capability, factor)
        return grad_hidden

    def _gradient(
        self, hidden: Tensor, rows: Tensor, columns: list[Tensor], first: int, temperature: float, grad: Tensor
    ) -> None:
        if len(hidden):
            asked = operands(hidden, rows, self.capability, self.processors)
            kernels.gradient_kernel[(asked.programs,)](
                asked.hidden, asked.weight, *columns, grad,
                len(hidden), hidden.shape[1], len(rows), hidden.stride(0), rows.stride(0), grad.stride(0), first,
                1 / temperature, ENTROPY=_wants_entropy(columns), **asked.constants,
            )  # fmt: skip

    def _gradient_of_kept(self, kept: Kept, columns: list[Tensor], temperature: float) -> Tensor | None:
        """Makes of what is kept d loss / d logits, but for the factor [tokens] that is returned; None: it is 1."""
        (tokens, rows), tile = kept.exp.shape, tile_of(kept.exp.dtype, self.capability).of_part()
        if not tokens:
            return None
        asked = tokens, rows, kept.exp.stride(0), 1 / temperature
        if _wants_entropy(columns):
            kernels.kept_gradient_kernel[(programs(tokens, rows, tile),)](
                *kept, *columns, *asked, ENTROPY=True, BM=tile.rows, BN=tile.columns, num_warps=tile.warps, **FUSED
            )
            return None
        factor = torch.empty_like(kept.offset)
        kernels.row_factor_kernel[(triton.cdiv(tokens, ROWS),)](
            *kept, *columns, factor, *asked, BM=ROWS, BN=tile.columns, num_warps=4, **FUSED
        )
        return factor


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
