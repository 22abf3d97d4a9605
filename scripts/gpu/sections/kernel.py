"""The LM-head kernels against float64."""

from __future__ import annotations

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check, at_most, both


def cases(bench: Bench) -> list[Case]:
    return [Case("kernel", "against float64", lambda: against_float64(bench))]


def against_float64(bench: Bench) -> list[Check]:
    found = bench.program("kernel_cases", bench.device, str(int(bench.quick)), name="kernel")
    return [_check(*row) for row in found]


def _check(name: str, figures: dict[str, float] | str, bounds: dict[str, float]) -> Check:
    if isinstance(figures, str):
        return Check(name, figures, "", False)
    return both(name, *(at_most(what, value, bounds[what]) for what, value in figures.items()))
