"""Figures as a reader sees them."""

from __future__ import annotations

import math

from megatron_gopd.evaluation.study.scores import Measured

# quantity -> (factor, digits, unit)
QUANTITIES = {
    "accuracy": (100, 1, "points"),
    "truncated": (100, 1, "%"),
    "reward": (100, 1, "points"),
    "tokens": (1, 2, "tokens"),
    "entropy": (1, 3, "nats"),
    "target_kl": (1, 5, "nats a token"),
}


def number(value: float, quantity: str = "accuracy", sign: bool = False) -> str:
    """In its quantity's unit, without naming it; – where there is none."""
    factor, digits, _ = QUANTITIES[quantity]
    if math.isnan(value):
        return "–"
    text = f"{round(factor * value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # + 0.0: no -0.0
    return text.replace("-", "−")


def with_error(value: Measured, quantity: str = "accuracy", sign: bool = False) -> str:
    """mean ± standard error."""
    return f"{number(value.mean, quantity, sign)} ± {number(value.standard_error, quantity)}"


def spreads(value: Measured, quantity: str = "accuracy", items: str = "problems") -> str:
    """Both standard errors apart, and how many seeds and items they are of."""
    said = [f"{number(value.over_items, quantity)} over {value.items} {items}"]
    if not math.isnan(value.over_seeds):
        said.append(f"{number(value.over_seeds, quantity)} over {value.seeds or 'different'} seeds")
    elif value.seeds == 1:
        said.append("one seed")
    return ", ".join(said)


def unit(quantity: str) -> str:
    return QUANTITIES[quantity][2]
