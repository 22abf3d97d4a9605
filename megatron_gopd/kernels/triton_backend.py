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

BLOCK = 8192  # vocabulary rows whose logits are computed again at a time
FUSED = {"enable_fp_fusion": True}  # multiply-add in one rounding, whatever a version of Triton defaults to
MERGE = {"ROWS": 32, "PARTS": 32, **FUSED}
ALIGN = 64  # columns: rows of a [tokens, vocabulary] buffer start where wide loads may


class Tile(NamedTuple):
    """Rows and columns of the output that a program computes, the inner columns of a step, warps, pipeline stages."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    registers: int | None = None  # of a thread; said aloud, ptxas does not aim lower and spill to fit more programs

    @property
    def part(self) -> int:
        """Vocabulary columns that share one peak."""
        return self.columns // 4

    def of_part(self) -> Tile:
        """The tile in which kept exponentials become gradients: no product, one peak a row."""
        return Tile(128, self.part, inner=1, warps=8, stages=1)


def tile_of(dtype: torch.dtype, capability: int) -> Tile:
    """A large tile of which no kernel spills a register; float32 products use no tensor core, and smaller tiles."""
    if dtype == torch.float32 and capability < 90:
        return Tile(64, 128, 32, warps=8, stages=3)
    if dtype == torch.float32:
        return Tile(64, 64, 32, warps=4, stages=3, registers=128)
    if 100 <= capability < 120:  # its accumulators lie in tensor memory, and wide tiles are split at a cost
        return Tile(256, 128, 64, warps=8, stages=3)
    return Tile(128, 256, 64, warps=8, stages=3)


class Kept(NamedTuple):
    exp: Tensor  # [tokens, rows] exp(z - peak of its part); `gradients` writes over it
    peak: Tensor  # [parts, tokens]


class TritonBackend:
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
        exp = _logits_like(hidden, rows) if keep else hidden.new_empty((1, 1))
        if tokens:
            kernels.statistics_kernel[(_programs(tokens, rows, tile),)](
                hidden, weight, targets.contiguous(), *parts, target_logit, exp,
                tokens, inner, rows, hidden.stride(0), weight.stride(0), exp.stride(0), 1 / temperature,
                KEEP=keep, EVEN=inner % tile.inner == 0, **_launch(tile),
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
        buffer = _logits_like(hidden, min(block, len(weight))) if kept is None else kept.exp
        for start in range(0, len(weight), block):
            rows = weight[start : start + block]
            grad = buffer[:, : len(rows)]
            if kept is None:
                self._gradient(hidden, rows, columns, start, temperature, grad)
            else:
                self._gradient_of_kept(kept, columns, temperature)
            self._product(grad, rows, grad_hidden, add=start > 0)
            if grad_weight is not None:
                self._product(grad.T, hidden, grad_weight[start : start + block], add)
        return grad_hidden

    def _gradient(
        self, hidden: Tensor, rows: Tensor, columns: list[Tensor], first: int, temperature: float, grad: Tensor
    ) -> None:
        tile, (tokens, inner) = tile_of(hidden.dtype, self.capability), hidden.shape
        if tokens:
            kernels.gradient_kernel[(_programs(tokens, len(rows), tile),)](
                hidden, rows, *columns, grad,
                tokens, inner, len(rows), hidden.stride(0), rows.stride(0), grad.stride(0), first, 1 / temperature,
                ENTROPY=_wants_entropy(columns), EVEN=inner % tile.inner == 0, **_launch(tile),
            )  # fmt: skip

    def _gradient_of_kept(self, kept: Kept, columns: list[Tensor], temperature: float) -> None:
        (tokens, rows), tile = kept.exp.shape, tile_of(kept.exp.dtype, self.capability).of_part()
        if tokens:
            kernels.kept_gradient_kernel[(_programs(tokens, rows, tile),)](
                *kept, *columns, tokens, rows, kept.exp.stride(0), 1 / temperature,
                ENTROPY=_wants_entropy(columns), BM=tile.rows, BN=tile.columns, num_warps=tile.warps, **FUSED,
            )  # fmt: skip

    def _product(self, a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
        """out = a @ b or out += a @ b; rows of b and out are contiguous, of a its rows or its columns."""
        (rows, inner), columns, tile = a.shape, b.shape[1], tile_of(b.dtype, self.capability)
        if rows and columns:
            kernels.product_kernel[(_programs(rows, columns, tile),)](
                a, b, out, rows, columns, inner, *a.stride(), b.stride(0), out.stride(0),
                ADD=add, EVEN=inner % tile.inner == 0, **_launch(tile),
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


def _logits_like(hidden: Tensor, columns: int) -> Tensor:
    """[tokens, columns] in the dtype of `hidden`, uninitialised, rows aligned."""
    return hidden.new_empty((len(hidden), triton.cdiv(columns, ALIGN) * ALIGN))[:, :columns]


def _programs(rows: int, columns: int, tile: Tile) -> int:
    return triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)


def _launch(tile: Tile) -> dict[str, int | bool]:
    sizes = {"BM": tile.rows, "BN": tile.columns, "BK": tile.inner}
    limit = {} if tile.registers is None else {"maxnreg": tile.registers}
    return sizes | {"num_warps": tile.warps, "num_stages": tile.stages} | limit | FUSED
