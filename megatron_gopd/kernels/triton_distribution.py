"""The distribution loss of CUDA tensors: launches of triton_distribution_kernels.py. Not run on a GPU yet.

D exists for BLOCK vocabulary rows at a time, in float32; what is kept for the gradients is in the dtype of the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from megatron_gopd.kernels import triton_distribution_kernels as kernels
from megatron_gopd.kernels.backend import DistributionStatistics, DistributionUpstream, Heads
from megatron_gopd.kernels.triton_kernels import merge_kernel
from megatron_gopd.kernels.triton_operands import operands_in_tiles
from megatron_gopd.kernels.triton_products import into_both
from megatron_gopd.kernels.triton_tiles import FUSED, MERGE, logits_like, programs, tile_of_sides
from megatron_gopd.kernels.workspace import GPU_BLOCK as BLOCK
from megatron_gopd.kernels.workspace import PLANES  # a block is a multiple of every tile's columns

Z, D = 0, 3  # planes where the statistics of either side begin


class KeptSides(NamedTuple):
    exp: Tensor  # [tokens, rows]; `distribution_gradients` writes over it
    other: Tensor  # [tokens, rows]
    peak: Tensor  # [parts, tokens]
    shift: Tensor  # [parts, tokens]


class TritonDistribution:
    """What TritonBackend does for a distribution loss."""

    capability: int

    def distribution_statistics(
        self, heads: Heads, targets: Tensor, temperature: float, keep: bool
    ) -> DistributionStatistics:
        student, rows, count = heads.hidden[0], len(heads.weight[0]), len(heads.hidden)
        tokens, tile = len(student), tile_of_sides(student.dtype, self.capability)
        sides = _floats(student, PLANES, triton.cdiv(rows, tile.part), tokens)
        # without a reference D is the teacher's logits, and so are its statistics
        of_targets = [
            _floats(student, 3, triton.cdiv(rows, tile.part), tokens) for _ in range(count - 1 if count > 2 else 0)
        ]
        target_logit = _floats(student, count, tokens).fill_(-torch.inf)
        exp, other = (logits_like(student, rows) if keep else student.new_empty((1, 1)) for _ in range(2))
        merged, targets = _floats(student, count + 1, 3, tokens), targets.contiguous()
        if tokens:
            for start in range(0, rows, BLOCK):
                blocks = [planes[:, start // tile.part :] for planes in of_targets]
                mixture = self._mixture(heads, start, targets, temperature, target_logit[1:], blocks)
                weight, inner = heads.weight[0][start : start + BLOCK], student.shape[1]
                asked = operands_in_tiles(student, weight, self.capability, tile)
                kernels.sides_kernel[(asked.programs,)](
                    asked.hidden, asked.weight, targets, sides[:, start // tile.part :], target_logit[0], mixture,
                    *((exp[:, start:], other[:, start:]) if keep else (exp, other)),
                    tokens, inner, len(weight), student.stride(0), weight.stride(0), mixture.stride(0), exp.stride(0),
                    sides.shape[1], start, 1 / temperature,
                    KEEP=keep, FORWARD=_forward(heads), **asked.constants,
                )  # fmt: skip
            _merge(sides, of_targets or [sides[D : D + 3]], merged, _forward(heads))
        kept = KeptSides(exp, other, sides[Z], sides[PLANES - 1]) if keep else None
        return DistributionStatistics(*merged.unbind(1), target_logit, kept)

    def _mixture(
        self,
        heads: Heads,
        start: int,
        targets: Tensor,
        temperature: float,
        target_logits: Tensor,
        statistics: list[Tensor],
    ) -> Tensor:
        """D over one block, [tokens, rows] float32; target_logits [targets, tokens] of those that lie in it.

        statistics: [3, parts, tokens] of every target's head from this block on, if they are wanted.
        """
        student, target = heads.hidden[0], heads.target
        tile, rows = tile_of_sides(student.dtype, self.capability), min(BLOCK, len(heads.weight[0]) - start)
        mixture = logits_like(student, rows, torch.float32)
        log_sums = student.new_empty(0, dtype=torch.float32)
        if heads.log_sums is not None:
            log_sums = heads.log_sums.float().contiguous()
        for n, (hidden, weight) in enumerate(zip(heads.hidden[1:], heads.weight[1:], strict=True)):
            (tokens, inner), weight = hidden.shape, weight[start : start + rows]
            asked = operands_in_tiles(hidden, weight, self.capability, tile)
            kernels.target_kernel[(asked.programs,)](
                asked.hidden, asked.weight, targets, *(statistics[n] if statistics else [log_sums] * 3),
                target_logits[n], mixture, log_sums,
                tokens, inner, rows, hidden.stride(0), weight.stride(0), mixture.stride(0), start,
                1 / temperature, float(target.lambda_), float(target.clamp or 0),
                STATISTICS=bool(statistics), MIXED=n > 0, CLAMP=heads.log_sums is not None,
                **asked.constants,
            )  # fmt: skip
        return mixture

    def distribution_gradients(
        self,
        kept: KeptSides | None,
        heads: Heads,
        targets: Tensor,
        temperature: float,
        upstream: DistributionUpstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        student, weight = heads.hidden[0], heads.weight[0]
        grad_hidden = torch.empty_like(student, dtype=torch.float32)
        columns = _per_token(targets, upstream)
        block = BLOCK if kept is None else len(weight)
        for start in range(0, len(weight), block):
            rows = weight[start : start + block]
            if kept is None:
                grad = self._gradient_again(heads, start, columns, temperature)
            else:
                grad = self._gradient_of_sides(kept, heads, columns, temperature)
            of_rows = None if grad_weight is None else grad_weight[start : start + block]
            into_both(grad, student, rows, grad_hidden, of_rows, start == 0, add, self.capability)
        return grad_hidden

    def _gradient_again(self, heads: Heads, start: int, columns: list[Tensor], temperature: float) -> Tensor:
        student, weight = heads.hidden[0], heads.weight[0][start : start + BLOCK]
        (tokens, inner), tile = student.shape, tile_of_sides(student.dtype, self.capability)
        grad = logits_like(student, len(weight))
        if tokens:
            unused = _floats(student, len(heads.hidden) - 1, tokens)
            mixture = self._mixture(heads, start, columns[0], temperature, unused, [])
            asked = operands_in_tiles(student, weight, self.capability, tile)
            kernels.distribution_gradient_kernel[(asked.programs,)](
                asked.hidden, asked.weight, mixture, *columns, grad,
                tokens, inner, len(weight), student.stride(0), weight.stride(0), mixture.stride(0), grad.stride(0),
                start, 1 / temperature,
                FORWARD=_forward(heads), SAMPLED=_sampled(columns), **asked.constants,
            )  # fmt: skip
        return grad

    def _gradient_of_sides(self, kept: KeptSides, heads: Heads, columns: list[Tensor], temperature: float) -> Tensor:
        (tokens, rows), tile = kept.exp.shape, tile_of_sides(kept.exp.dtype, self.capability).of_part()
        if tokens:
            kernels.kept_distribution_gradient_kernel[(programs(tokens, rows, tile),)](
                *kept, *columns, tokens, rows, kept.exp.stride(0), 1 / temperature,
                FORWARD=_forward(heads), SAMPLED=_sampled(columns),
                BM=tile.rows, BN=tile.columns, num_warps=tile.warps, **FUSED,
            )  # fmt: skip
        return kept.exp


def _merge(sides: Tensor, of_targets: list[Tensor], merged: Tensor, forward: bool) -> None:
    """Statistics [heads + 1, 3, tokens] of student, targets and D from those of their parts."""
    tokens = sides.shape[2]
    grid = (triton.cdiv(tokens, 32),)
    for planes, into in zip([sides[Z : Z + 3], *of_targets, sides[D : D + 3]], merged, strict=True):
        merge_kernel[grid](*planes, into, tokens, planes.shape[1], **MERGE)
    both = (merged[0][0], Z), (merged[-1][0], D)
    (leading, leading_plane), (trailing, trailing_plane) = reversed(both) if forward else both
    kernels.gap_kernel[grid](
        sides, leading, trailing, merged[-1][2], tokens, sides.shape[1], leading_plane, trailing_plane, **MERGE
    )


def _per_token(targets: Tensor, upstream: DistributionUpstream) -> list[Tensor]:
    """The [tokens] arguments of both gradient kernels, in their order."""
    log_sum, mixture_log_sum, gap, own_log_sum, logprobs, slope = (
        column.float().contiguous() for column in upstream[:6]
    )
    sampled = at_target = slope.new_empty(0)
    if upstream.grad_logprobs is not None:
        sampled = upstream.grad_logprobs.float().contiguous()
        at_target = -sampled * torch.expm1(logprobs)  # slope (1 - p): near p = 1 the difference would cancel
    return [targets.contiguous(), log_sum, mixture_log_sum, gap, own_log_sum, slope, sampled, at_target]


def _sampled(columns: list[Tensor]) -> bool:
    return columns[-1].numel() > 0


def _forward(heads: Heads) -> bool:
    return heads.target.divergence == "forward_kl"


def _floats(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)
