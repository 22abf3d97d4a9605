"""How the Triton kernels read hidden and weight: through descriptors where the GPU has them, else through pointers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from megatron_gopd.kernels.triton_tiles import Tile, launch, programs, tile_of

OLDEST = 90  # sm_90: the copy engine that reads a described tile
BYTES = 16  # of which it wants addresses and strides to be multiples


class Operands(NamedTuple):
    """Of one launch; `constants` go to the kernel as keywords, with the options of its launch."""

    hidden: Tensor | TensorDescriptor
    weight: Tensor | TensorDescriptor
    programs: int
    constants: dict[str, Any]


def operands(hidden: Tensor, weight: Tensor, capability: int, processors: int) -> Operands:
    """For a kernel whose programs work on one tile after the other where operands are described.

    hidden [tokens, h], weight [rows, h]: rows contiguous. processors: of the GPU, one program each.
    """
    described = may_be_described(hidden, weight, capability)
    tile = tile_of(hidden.dtype, capability, described)
    count = programs(len(hidden), len(weight), tile)
    found = operands_in_tiles(hidden, weight, capability, tile)
    constants = found.constants | {"FLATTEN": described and capability < 100}  # its tensor memory has no room for two
    return found._replace(programs=min(count, processors) if described else count, constants=constants)


def operands_in_tiles(hidden: Tensor, weight: Tensor, capability: int, tile: Tile) -> Operands:
    """For a kernel whose programs work on one tile each."""
    described = may_be_described(hidden, weight, capability)
    even = described or hidden.shape[1] % tile.inner == 0
    constants = {"DESCRIBED": described, "EVEN": even, **launch(tile)}
    if described:
        first = TensorDescriptor.from_tensor(hidden, [tile.rows, tile.inner])
        second = TensorDescriptor.from_tensor(weight, [tile.columns, tile.inner])
        return Operands(first, second, programs(len(hidden), len(weight), tile), constants)
    return Operands(hidden, weight, programs(len(hidden), len(weight), tile), constants)


def may_be_described(hidden: Tensor, weight: Tensor, capability: int) -> bool:
    """float32 products use no tensor core, and wait for no operand."""
    return (
        hidden.dtype == torch.bfloat16
        and capability >= OLDEST
        and all(
            each.data_ptr() % BYTES == 0 and each.stride(0) * each.element_size() % BYTES == 0
            for each in (hidden, weight)
        )
    )
