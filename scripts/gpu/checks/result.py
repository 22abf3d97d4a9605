"""What a check found: one row of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """`figure` was measured, and `bound` was asked for; holds is None where the check was skipped."""

    name: str
    figure: str
    bound: str
    holds: bool | None
    section: str = ""


class Skipped(Exception):
    """What a check needs is not on this machine; the message says what."""


def at_most(name: str, value: float, bound: float, unit: str = "") -> Check:
    """NaN does not hold."""
    return Check(name, f"{value:.1e} {unit}".strip(), f"<= {bound:g}", value <= bound)


def equal(name: str, differing: list[str]) -> Check:
    """`differing`: what is not the same, bit for bit."""
    return Check(name, f"{', '.join(differing[:3])} differ" if differing else "equal", "the same bits", not differing)


def both(name: str, *checks: Check) -> Check:
    """Several figures in one row."""
    holds = all(check.holds for check in checks)
    told = [[f"{check.name} {text}".strip() for check, text in pairs] for pairs in _figures_and_bounds(checks)]
    return Check(name, *(", ".join(texts) for texts in told), holds)


def _figures_and_bounds(checks: tuple[Check, ...]) -> list[list[tuple[Check, str]]]:
    return [[(check, check.figure) for check in checks], [(check, check.bound) for check in checks]]
