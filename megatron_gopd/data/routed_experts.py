"""The experts that a rollout engine chose at each position of a row, for the trainer to choose the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_gopd.data.packing import Row

OWN = -1  # in the place of an expert: the trainer's router chooses


def dtype_of(experts: int) -> np.dtype:
    """The smallest that numbers so many."""
    return np.dtype(np.uint8 if experts <= 256 else np.int16)


def of_micro_batch(rows: Sequence[Row], places: Sequence[np.ndarray], tokens: int) -> Tensor | None:
    """[tokens, layers, top_k] int16, OWN where nobody told; None: of no row anything is known.

    Args:
        places: [local] of each row, which of its positions lie here, one after the other.
        tokens: in the micro-batch, padding at its end included.
    """
    told = [row.routed_experts for row in rows if row.routed_experts is not None]
    if not told:
        return None
    chosen = np.full((tokens, *told[0].shape[1:]), OWN, dtype=np.int16)
    starts = np.cumsum([0, *map(len, places)])
    for row, here, start in zip(rows, places, starts, strict=False):
        if row.routed_experts is not None:
            known = (here < len(row.routed_experts)).nonzero()[0]
            chosen[start + known] = row.routed_experts[here[known]]
    return torch.from_numpy(chosen)
