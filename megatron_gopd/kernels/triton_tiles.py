"""The tiles of the Triton kernels, and how they are launched."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

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


def tile_of(dtype: torch.dtype, capability: int, described: bool = False) -> Tile:
    """A large tile of which no kernel spills a register; float32 products use no tensor core, and smaller tiles.

    described: whether the operands are, see triton_operands.py.
    """
    if dtype == torch.float32 and capability < 90:
        return Tile(64, 128, 32, warps=8, stages=3)
    if dtype == torch.float32:
        return Tile(64, 64, 32, warps=4, stages=3, registers=128)
    if 100 <= capability < 120:  # its accumulators lie in tensor memory, and wide tiles are split at a cost
        return Tile(256, 128, 64, warps=8, stages=3)
    return Tile(128, 256, 64, warps=8, stages=4 if described else 3)


def tile_of_sides(dtype: torch.dtype, capability: int) -> Tile:
    """Of products beside which D lies in registers too."""
    if dtype == torch.float32:
        return Tile(64, 64, 32, warps=4, stages=3, registers=168)
    return Tile(128, 64 if 100 <= capability < 120 else 128, 64, warps=8, stages=3)


def logits_like(hidden: Tensor, columns: int, dtype: torch.dtype | None = None) -> Tensor:
    """[tokens, columns] in the dtype of `hidden`, or another, uninitialised, rows aligned."""
    return hidden.new_empty((len(hidden), triton.cdiv(columns, ALIGN) * ALIGN), dtype=dtype)[:, :columns]


def programs(rows: int, columns: int, tile: Tile) -> int:
    return triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)


def launch(tile: Tile) -> dict[str, int | bool]:
    sizes = {"BM": tile.rows, "BN": tile.columns, "BK": tile.inner}
    limit = {} if tile.registers is None else {"maxnreg": tile.registers}
    return sizes | {"num_warps": tile.warps, "num_stages": tile.stages} | limit | FUSED
