"""The same bits again: of a step, and of a run that was killed and went on."""

from __future__ import annotations

from functools import partial

from scripts.gpu.checks.bench import DETERMINISTIC, Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check, at_most, equal
from scripts.gpu.checks.runs import Run, tree

STEPS, KILLED_AT = 4, 3
NEAR = 1e-3  # nats, of two runs that cannot be the same bits


def cases(bench: Bench) -> list[Case]:
    found = [] if bench.quick else [Case("resume", "repeat, experts", partial(experts_repeat, bench))]
    for dtype in ("bfloat16",) if bench.quick else ("float32", "bfloat16"):
        found.append(Case("resume", f"repeat {dtype}", partial(repeats, bench, dtype)))
        found.append(Case("resume", f"killed {dtype}", partial(goes_on, bench, dtype)))
    return found


def repeats(bench: Bench, dtype: str) -> Check:
    one, other = (_run(bench, name, dtype) for name in ("whole", "again"))
    return equal(f"{STEPS} steps again, {dtype}", one.differences(other))


def goes_on(bench: Bench, dtype: str) -> Check:
    """Killed in the third step, after the checkpoint of the second."""
    given = _tree(bench, "killed", dtype)
    dies = {"GPU_CHECK_DIE": f"train:{KILLED_AT}"}
    bench.start(given, extra=DETERMINISTIC | dies, ends_with=-9)
    killed = bench.start(given, extra=DETERMINISTIC)
    return equal(f"killed in step {KILLED_AT}, resumed, {dtype}", killed.differences(_run(bench, "whole", dtype)))


def experts_repeat(bench: Bench) -> Check:
    """On a GPU tokens come back from their experts by atomic additions, in no fixed order: near, not equal."""
    models = {"student": "expert-student", "teacher": "expert-teacher"}
    trees = [tree(bench, f"experts-{name}", dtype="bfloat16", steps=2, **models) for name in ("whole", "again")]
    one, other = (bench.train(each, extra=DETERMINISTIC) for each in trees)
    if not bench.gpu:
        return equal("2 steps again, experts", one.differences(other))
    gap = abs(one.rows[-1]["reverse_kl"] - other.rows[-1]["reverse_kl"])
    return at_most("2 steps again, experts, reverse KL", gap, NEAR, "nats")


def _tree(bench: Bench, name: str, dtype: str) -> dict:
    every = {"checkpoint": {"every": 1, "resume": "auto"}}
    return tree(bench, f"resume-{name}-{dtype}", dtype=dtype, steps=STEPS) | every


def _run(bench: Bench, name: str, dtype: str) -> Run:
    return bench.train(_tree(bench, name, dtype), extra=DETERMINISTIC)
