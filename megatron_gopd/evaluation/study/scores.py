"""Means over problems and seeds, and their differences, each with the two spreads that a reader needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_gopd.evaluation.statistics import Estimate

Seed = int | None  # None: a model that is given, not trained from a seed here
Values = dict[Seed, dict[str, float]]  # {seed: {problem: mean over the answers to it}}


@dataclass(frozen=True)
class Measured:
    """A mean over seeds of means over items, which are problems, or blocks of training steps."""

    mean: float
    over_items: float  # standard error over items, each averaged over the seeds first
    over_seeds: float  # standard error over the seeds' means; NaN where it is not known
    items: int
    of_seed: dict[Seed, float]

    @classmethod
    def of(cls, values: Values) -> Measured:
        """Items that every seed has."""
        shared = _shared(values)
        items = Estimate.of([_mean([values[seed][item] for seed in values]) for item in shared])
        of_seed = {seed: _mean([values[seed][item] for item in shared]) for seed in values}
        return cls(items.mean, items.standard_error, _over_seeds(of_seed), items.items, of_seed)

    @classmethod
    def difference(cls, ours: Values, theirs: Values) -> Measured | None:
        """ours - theirs, paired item by item, and seed by seed where both were trained from the same seeds.

        A given model is the partner of every seed. Without a seed in common the spreads over seeds add up in square.
        None without an item in common.
        """
        shared = set(_shared(ours)) & set(_shared(theirs))
        if not shared:
            return None
        ours, theirs = _only(ours, shared), _only(theirs, shared)
        if None in theirs:
            pairs = {seed: (ours[seed], theirs[None]) for seed in ours}
        elif None in ours:
            pairs = {seed: (ours[None], theirs[seed]) for seed in theirs}
        else:
            pairs = {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}
        if pairs:
            return cls.of({seed: {item: a[item] - b[item] for item in a} for seed, (a, b) in pairs.items()})
        a, b = cls.of(ours), cls.of(theirs)
        apart = {
            item: _mean([v[item] for v in ours.values()]) - _mean([v[item] for v in theirs.values()]) for item in shared
        }
        items = Estimate.of(list(apart.values()))
        return cls(items.mean, items.standard_error, math.hypot(a.over_seeds, b.over_seeds), items.items, {})

    @property
    def standard_error(self) -> float:
        """Of both spreads together; of items alone where there is one seed.

        The sum of squares counts what seeds and items share twice, so it is never too small: two-way clustering
        (Cameron, Gelbach and Miller 2011, eq. 2.11) without the term it subtracts.
        """
        return self.over_items if math.isnan(self.over_seeds) else math.hypot(self.over_items, self.over_seeds)

    @property
    def seeds(self) -> int:
        """How many training seeds; 0 for a given model."""
        return len(self.of_seed.keys() - {None})

    def times(self, factor: float) -> Measured:
        scaled = {seed: factor * value for seed, value in self.of_seed.items()}
        size = abs(factor)
        return Measured(factor * self.mean, size * self.over_items, size * self.over_seeds, self.items, scaled)


def average(parts: Sequence[Measured]) -> Measured:
    """The mean over suites, whose problems are independent; seeds are the same models in each."""
    seeds = set.intersection(*(set(part.of_seed) for part in parts))
    of_seed = {seed: _mean([part.of_seed[seed] for part in parts]) for seed in sorted(seeds, key=str)}
    spread = _over_seeds(of_seed) if of_seed else _mean([part.over_seeds for part in parts])
    over_items = math.hypot(*(part.over_items for part in parts)) / len(parts)
    return Measured(_mean([part.mean for part in parts]), over_items, spread, sum(p.items for p in parts), of_seed)


def smoothed(values: Sequence[float], weight: float = 0.5) -> list[float]:
    """Exponential moving average: `weight` of what was, the rest of what is."""
    found: list[float] = []
    for value in values:
        found.append(value if not found else weight * found[-1] + (1 - weight) * value)
    return found


def in_blocks(steps: dict[int, float], blocks: int = 8) -> dict[str, float]:
    """{block: mean} of consecutive steps: neighbours resemble each other, blocks of them much less."""
    ordered = [steps[step] for step in sorted(steps)]
    count = max(1, min(blocks, len(ordered) // 2))
    edges = [round(n * len(ordered) / count) for n in range(count + 1)]
    return {str(n): _mean(ordered[edges[n] : edges[n + 1]]) for n in range(count) if ordered}


def _over_seeds(of_seed: dict[Seed, float]) -> float:
    return Estimate.of(list(of_seed.values())).standard_error


def _shared(values: Values) -> list[str]:
    return [item for item in next(iter(values.values()), {}) if all(item in each for each in values.values())]


def _only(values: Values, items: set[str]) -> Values:
    return {seed: {item: each[item] for item in each if item in items} for seed, each in values.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
