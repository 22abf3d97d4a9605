"""Every FP8 recipe that the card has, for a student and for a teacher."""

from __future__ import annotations

from functools import partial

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check, Skipped, at_most, both
from scripts.gpu.checks.runs import sound, tree
from scripts.gpu.sections.loop import bf16

RECIPES = ("tensorwise", "delayed", "blockwise", "mxfp8")
AGREE = 0.2  # nats in the mean: the engine samples in bf16, the trainer scores in FP8
NEAR, LATER = 0.02, 0.05  # of bf16's reverse KL, nats: at the first step, by the same tokens; at the last


def cases(bench: Bench) -> list[Case]:
    """A quick check has student and teacher in one run."""
    if bench.facts["te_problem"]:
        return [Case("fp8", "every recipe", bench.needs_te)]
    kinds = ("both",) if bench.quick else ("student", "teacher")
    every = [(recipe, who, {}) for recipe in RECIPES for who in kinds]
    if not bench.quick:
        every += [(recipe, "student", {"weights": True}) for recipe in ("tensorwise", "blockwise")]
    return [Case("fp8", _name(*one), partial(trained, bench, *one)) for one in every]


def trained(bench: Bench, recipe: str, who: str, more: dict) -> Check:
    """Three steps with FP8, beside the same steps without."""
    if problem := bench.facts["fp8"][recipe]:
        raise Skipped(f"{recipe}: {problem}")
    name, asked = _name(recipe, who, more), {"recipe": recipe} | more
    given = tree(bench, f"fp8-{name.replace(' ', '-')}", dtype="bfloat16")
    if who in ("student", "both"):
        given["student"]["fp8"] = asked
    if who in ("teacher", "both"):
        given["teachers"]["one"]["fp8"] = asked
    run, plain = bench.train(given), bench.train(bf16(bench))
    gaps = [abs(a["reverse_kl"] - b["reverse_kl"]) for a, b in zip(run.rows, plain.rows, strict=True)]
    ran = sound("", run, steps=3, dtype="bfloat16", agree=AGREE)
    return both(name, ran, at_most("KL at first", gaps[0], NEAR), at_most("at last", gaps[-1], LATER))


def _name(recipe: str, who: str, more: dict) -> str:
    return f"{recipe} {who}{' weights' if more else ''}"
