"""As many of one group as of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def equal_sample(groups: Sequence[str], seed: int) -> list[int]:
    """Which items stay so that every group has as many as the smallest: positions in `groups`, ascending.

    Drawn without replacement; the same groups and seed give the same sample.
    """
    random = np.random.default_rng(seed)
    members = {group: np.flatnonzero(np.array(groups) == group) for group in sorted(set(groups))}
    fewest = min(map(len, members.values()), default=0)
    return sorted(int(i) for positions in members.values() for i in random.choice(positions, fewest, replace=False))
