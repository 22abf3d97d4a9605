"""What a light is, and how a series of a metric turns one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from megatron_gopd.view.run import Run

State = Literal["good", "watch", "bad", "unknown"]


@dataclass(frozen=True)
class Light:
    """`metric`: the curve that shows it."""

    name: str
    state: State
    reason: str
    metric: str | None = None


@dataclass(frozen=True)
class Ends:
    """Means over the first and the last tenth of a series, at least three steps, and the error of their difference."""

    first: float
    last: float
    error: float
    steps: int

    @classmethod
    def of(cls, values: list[float]) -> Ends | None:
        """None where there are fewer than four values."""
        if len(values) < 4:
            return None
        count = min(max(3, len(values) // 10), len(values) // 2)
        ends = [values[:count], values[-count:]]
        error = sum(stdev(end) ** 2 / count for end in ends) ** 0.5
        return cls(fmean(ends[0]), fmean(ends[1]), error, count)

    @property
    def moved(self) -> Literal["fell", "rose", "stayed"]:
        """Beyond what 19 of 20 chance differences are within, and by more than a fiftieth."""
        change, quantile = self.last - self.first, 2 * (1 + 1.2 / self.steps)  # Student's t, near enough
        if abs(change) <= max(quantile * self.error, 0.02 * abs(self.first)):
            return "stayed"
        return "fell" if change < 0 else "rose"

    def told(self, form: str = ".3g") -> str:
        return f"{self.first:{form}} → {self.last:{form}}"


def judged(
    run: Run,
    name: str,
    metric: str,
    judge: Callable[[Ends], State],
    said: str,
    form: str = ".3g",
    absent: str = "the metrics do not tell it",
) -> Light:
    """The light of one metric by its ends. `said` may hold {told}, the two means, and {moved}; `form`: of a mean."""
    values = run.series(metric)
    ends = Ends.of(values)
    if ends is None:
        return too_few(name, metric, values, absent)
    return Light(name, judge(ends), said.format(told=ends.told(form), moved=ends.moved), metric)


def too_few(name: str, metric: str, values: list[float], absent: str = "the metrics do not tell it") -> Light:
    """The light of a metric without ends."""
    if values:
        return Light(name, "unknown", f"{len(values)} step{'s' * (len(values) > 1)}: too few to tell", metric)
    return Light(name, "unknown", absent)
