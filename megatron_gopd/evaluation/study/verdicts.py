"""When a claim holds: rules over differences with standard errors, fixed before any run is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import NormalDist

from megatron_gopd.evaluation.study.numbers import spreads
from megatron_gopd.evaluation.study.scores import Measured

HOLDS, FAILS, OPEN = "holds", "does not hold here", "cannot be told from these runs"
SURE = 2.0  # standard errors
Judge = Callable[[list["Evidence"]], str]


@dataclass(frozen=True)
class Evidence:
    """One figure that speaks for or against a claim."""

    where: str
    what: str
    value: Measured
    quantity: str = "accuracy"
    margin: float = 0.0  # how far below 0, or from 0, still counts
    rival: str = ""  # which of several other methods it is about
    items: str = "problems"  # what the standard error is over

    @property
    def spreads(self) -> str:
        return spreads(self.value, self.quantity, self.items)

    def turned(self) -> Evidence:
        return replace(self, value=self.value.times(-1))


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, how it is judged, and which runs would speak of it."""

    text: str
    source: str
    needs: str
    gather: Callable[..., Iterable[Evidence]]  # Study -> evidence
    judge: Judge


@dataclass(frozen=True)
class Finding:
    """What these runs say of one claim."""

    claim: Claim
    verdict: str
    evidence: list[Evidence] = field(default_factory=list)

    @classmethod
    def of(cls, claim: Claim, study) -> Finding:
        evidence = list(claim.gather(study))
        return cls(claim, claim.judge(evidence) if evidence else OPEN, evidence)


def above_zero(evidence: list[Evidence]) -> str:
    """It holds where every figure is above 0 by two standard errors, and does not where one is below 0 by as much."""
    values = [(each.value.mean + each.margin, each.value.standard_error) for each in evidence]
    # among many figures one is low by chance: Bonferroni
    far = NormalDist().inv_cdf(1 - (1 - NormalDist().cdf(SURE)) / len(values))
    if any(mean < -far * error for mean, error in values):
        return FAILS
    return HOLDS if all(mean > SURE * error for mean, error in values) else OPEN


def not_below(evidence: list[Evidence]) -> str:
    """It holds where every figure is above minus its margin by two standard errors, and does not where one is below
    that by as much."""
    return above_zero(evidence)


def near_zero(evidence: list[Evidence]) -> str:
    """It holds where every figure is within its margin by two standard errors, and does not where one is outside by as
    much."""
    return weakest([above_zero(evidence), above_zero([each.turned() for each in evidence])])


def somewhere_below(evidence: list[Evidence]) -> str:
    """It holds where some figure is below 0 by two standard errors, and does not where all are above 0 by as much."""
    if HOLDS in [above_zero([each.turned()]) for each in evidence]:
        return HOLDS
    return FAILS if above_zero(evidence) == HOLDS else OPEN


def only(evidence: list[Evidence]) -> str:
    """It holds where the method's own figures are above 0, and each rival has one below 0, by two standard errors; it
    does not where the method has a figure below 0, or a rival all of them above, by as much."""
    groups: dict[str, list[Evidence]] = {}
    for each in evidence:
        groups.setdefault(each.rival, []).append(each)
    own = groups.pop("", None)
    return weakest([*([above_zero(own)] if own else []), *map(somewhere_below, groups.values())])


def weakest(verdicts: Iterable[str]) -> str:
    found = set(verdicts)
    return next(each for each in (FAILS, OPEN, HOLDS) if each in found)
