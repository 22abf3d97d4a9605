"""Mixtures of experts: one teaches, one learns."""

from __future__ import annotations

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check, both
from scripts.gpu.checks.runs import sound, tree


def cases(bench: Bench) -> list[Case]:
    """The student's teacher is one, too: a quick check has that run only."""
    teacher = [] if bench.quick else [Case("moe", "teacher", lambda: teaches(bench))]
    return [*teacher, Case("moe", "student", lambda: learns(bench))]


def teaches(bench: Bench) -> Check:
    given = tree(bench, "expert-teacher", dtype="bfloat16", steps=2, teacher="expert-teacher")
    return sound("teacher, 2 steps", bench.train(given), steps=2, dtype="bfloat16")


def learns(bench: Bench) -> Check:
    given = tree(bench, "expert-student", dtype="bfloat16", steps=2, student="expert-student", teacher="expert-teacher")
    run = bench.train(given)
    drift = run.rows[-1]["router_drift"]
    moved = Check("routers moved", f"{drift:.1e}", "> 0, < 1", 0 < drift < 1)
    return both("student, 2 steps", sound("", run, steps=2, dtype="bfloat16"), moved)
