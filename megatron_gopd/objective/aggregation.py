"""How token losses become one number: explicit, global, never a function of how the batch is cut."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean"]


def token_weights(lengths: Tensor, aggregation: Aggregation) -> Tensor:
    """The weight of every response token of the whole batch; they sum to 1.

        sequence_mean: 1 / (N |y_i|)       a mean over sequences of token means (what the published runs did)
        token_mean:    1 / sum_j |y_j|     a mean over tokens

    The loss is sum_t weight_t * loss_t over all micro-batches and data-parallel ranks, so cutting or packing the
    batch differently cannot change it.

    Args:
        lengths: [sequences] response lengths of the WHOLE batch, all >= 1.

    Returns:
        [sum(lengths)] float64, sequence after sequence.
    """
    if (lengths < 1).any():
        raise ValueError("every sequence needs at least one response token")
    if aggregation == "sequence_mean":
        per_sequence = 1.0 / (len(lengths) * lengths.double())
    else:
        per_sequence = torch.full_like(lengths, 1.0, dtype=torch.float64) / lengths.sum()
    return per_sequence.repeat_interleave(lengths)
