"""Sums whose order is fixed: neighbours first, then neighbours of those, whoever computed them.

Over a power of two of equal parts, a rank may add its own parts first and the ranks' sums then be added the same way:
the additions, and so the bits, do not depend on how many ranks there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]  # peak, total, weighted: see backend.Statistics


def tree_sum(parts: Tensor) -> Tensor:
    """[parts, ...] -> [...]."""
    while len(parts) > 1:
        paired = parts[: len(parts) // 2 * 2]
        parts = torch.cat([paired[0::2] + paired[1::2], parts[len(paired) :]])
    return parts[0]


def tree_merge(parts: Triple) -> Triple:
    """Statistics [parts, tokens] of disjoint parts of the vocabulary -> [tokens] of their union."""
    while len(parts[0]) > 1:
        paired = len(parts[0]) // 2 * 2
        merged = merge(tuple(part[0:paired:2] for part in parts), tuple(part[1:paired:2] for part in parts))
        parts = tuple(torch.cat([new, old[paired:]]) for new, old in zip(merged, parts, strict=True))
    return tuple(part[0] for part in parts)


def merge(one: Triple, other: Triple) -> Triple:
    """Statistics of the union of two parts of the vocabulary; a part may be empty (peak -inf)."""
    peak = torch.maximum(one[0], other[0])
    total, weighted = torch.zeros_like(peak), torch.zeros_like(peak)
    for part_peak, part_total, part_weighted in (one, other):
        empty = part_peak == -torch.inf
        lower = torch.where(empty, 0.0, part_peak - peak)  # -inf - -inf is NaN
        shrink = torch.where(empty, 0.0, lower.exp())
        total = total + part_total * shrink
        weighted = weighted + (part_weighted + part_total * lower) * shrink
    return peak, total, weighted
