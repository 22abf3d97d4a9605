"""Numbers of some stretch of a program on one rank, and their arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Collective(NamedTuple):
    """A kind of message of this rank."""

    operation: str  # all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send, receive
    ranks: tuple[int, ...]  # of its group


class Gemm(NamedTuple):
    """A matrix product [m, k] x [k, n], `batch` times."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


@dataclass
class Counts:
    gemms: Counter[Gemm] = field(default_factory=Counter)
    attention_flops: float = 0.0  # of causal attention, half of the square
    moved_bytes: float = 0.0  # read and written by every other operation, one by one
    collectives: Counter[Collective] = field(default_factory=Counter)
    sent_bytes: Counter[Collective] = field(default_factory=Counter)  # the larger side, this rank's input or output
    peak_bytes: float = 0.0  # allocated at once, beyond what was held when the stretch began
    kept_bytes: float = 0.0  # of which some is still held at its end

    @property
    def gemm_flops(self) -> float:
        return sum(gemm.flops * count for gemm, count in self.gemms.items())

    @property
    def flops(self) -> float:
        return self.gemm_flops + self.attention_flops


def combined(parts: Iterable[tuple[float, Counts]]) -> Counts:
    """The sum of factor x counts."""
    total = Counts()
    for factor, counts in parts:
        for name, value in vars(counts).items():
            if isinstance(value, Counter):
                into = getattr(total, name)
                for key, count in value.items():
                    into[key] += factor * count
            else:
                setattr(total, name, getattr(total, name) + factor * value)
    return total


def at_depth(layers: int, one: Counts, two: Counts) -> Counts:
    """Counts of a stage of `layers` equal layers, from those of stages of one layer and of two."""
    return combined([(2 - layers, one), (layers - 1, two)])
