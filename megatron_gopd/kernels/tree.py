"""Sums whose order is fixed: neighbours first, then neighbours of those, whoever computed them.

Over a power of two of equal parts, a rank may add its own parts first and the ranks' sums then be added the same way:
the additions, and so the bits, do not depend on how many ranks there are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]  # peak, total, weighted: see backend.Statistics


def tree_sum(parts: Tensor) -> Tensor:
    """[parts, ...] -> [...]."""
    while len(parts) > 1:
        paired = parts[: len(parts) // 2 * 2]
        parts = torch.cat([paired[0::2] + paired[1::2], parts[len(paired) :]])
    return parts[0]


def tree_merge(parts: Triple, merged_of: Callable[[Triple, Triple], Triple] | None = None) -> Triple:
    """Statistics [parts, ..., tokens] of disjoint parts of the vocabulary -> [..., tokens] of their union.

    merged_of: `merge` unless given.
    """
    while len(parts[0]) > 1:
        paired = len(parts[0]) // 2 * 2
        merged = (merged_of or merge)(
            tuple(part[0:paired:2] for part in parts), tuple(part[1:paired:2] for part in parts)
        )
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


def merge_sides(one: Triple, other: Triple, forward: bool) -> Triple:
    """merge() of [..., rows, tokens], of which the first and the last are the two sides; see
    backend.DistributionStatistics.

    forward: the divergence weighs by the last row's distribution, not by the first's.
    """
    peak, total, weighted = merge(one, other)
    leading, trailing = (-1, 0) if forward else (0, -1)
    gap = torch.zeros_like(peak[..., 0, :])
    for part_peak, part_total, part_weighted in (one, other):
        empty = part_peak[..., :1, :] == -torch.inf
        lower = torch.where(empty, 0.0, part_peak - peak)
        shrink = torch.where(empty[..., 0, :], 0.0, lower[..., leading, :].exp())
        shift = lower[..., leading, :] - lower[..., trailing, :]
        gap = gap + (part_weighted[..., -1, :] + part_total[..., leading, :] * shift) * shrink
    return peak, total, torch.cat([weighted[..., :-1, :], gap[..., None, :]], -2)
