"""The advantage of a response over the others to the same prompt."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

SMALLEST = 1e-6  # of a standard deviation, below which rewards count as equal


def group_advantages(rewards: Sequence[float], groups: Sequence[Hashable], *, normalize_std: bool) -> list[float]:
    """A_i = (r_i - mean of its group) / (standard deviation of its group + 1e-6), or without the division.

    The standard deviation is the unbiased one (n - 1). A group whose rewards are all equal, or that has one member,
    teaches nothing: its advantages are exactly 0. Source: GRPO (arXiv:2402.03300, section 4.1.2); without the division,
    arXiv:2503.20783.

    Args:
        rewards: [responses].
        groups: [responses] what tells the groups apart, in any order.
    """
    members: dict[Hashable, list[float]] = {}
    for reward, group in zip(rewards, groups, strict=True):
        members.setdefault(group, []).append(reward)
    centre = {group: math.fsum(values) / len(values) for group, values in members.items()}
    spread = {group: _deviation(values, centre[group]) for group, values in members.items()}
    return [
        0.0
        if spread[group] <= SMALLEST
        else (reward - centre[group]) / (spread[group] + SMALLEST if normalize_std else 1.0)
        for reward, group in zip(rewards, groups, strict=True)
    ]


def _deviation(values: list[float], mean: float) -> float:
    if len(values) < 2 or min(values) == max(values):
        return 0.0
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
