"""Means that say how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over independent items (prompts), and its standard error."""

    mean: float
    standard_error: float
    items: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Raises ValueError for no values; the standard error of one value is NaN."""
        count = len(values)
        if not count:
            raise ValueError("no values to average")
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, math.nan, 1)
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        return cls(mean, math.sqrt(variance / count), count)

    @classmethod
    def of_difference(cls, after: Sequence[float], before: Sequence[float]) -> Estimate:
        """Of after - before, paired item by item."""
        return cls.of([a - b for a, b in zip(after, before, strict=True)])

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.standard_error:.3f}"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that one of k answers, drawn from `samples` of which `right` are right, is right: 1 - C(n-c,k)/C(n,k).

    The unbiased estimate of Chen et al. 2021 (arXiv:2107.03374, eq. 1). k is at most `samples`.
    """
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)
