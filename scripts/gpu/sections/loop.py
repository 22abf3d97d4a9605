"""Scoring against transformers, and steps of every loop, with and without Transformer Engine."""

from __future__ import annotations

from scripts.gpu.checks.bench import DETERMINISTIC, Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check, at_most, equal
from scripts.gpu.checks.runs import reward, sound, tree
from scripts.gpu.checks.scores import largest, mean, read_scores, write_rows
from scripts.gpu.sections.phases import beside_the_plan

NOT_IN_A_QUICK = ("score float32, experts", "gopd bf16 without TE", "offload", "offload ahead")
EXACT, NEAR = 1e-5, 0.02  # nats: of float32, the worst; of bf16, in the mean


def cases(bench: Bench) -> list[Case]:
    every = {
        "phases": lambda: beside_the_plan(bench),
        "score float32": lambda: exact(bench, "student"),
        "score float32, experts": lambda: exact(bench, "expert-student"),
        "score bf16": lambda: near(bench),
        "gopd float32": lambda: gopd(bench, "float32"),
        "gopd bf16 without TE": lambda: gopd(bench, "bfloat16", te=False),
        "gopd bf16 with TE": lambda: with_te(bench),
        "grpo": lambda: grpo(bench),
        "sft": lambda: sft(bench),
        "offload": lambda: offload(bench, "true"),
        "offload ahead": lambda: offload(bench, "ahead"),
    }
    return [Case("loop", name, run) for name, run in every.items() if not (bench.quick and name in NOT_IN_A_QUICK)]


def exact(bench: Bench, model: str) -> Check:
    ours, plain = scored(bench, model, "float32")
    return at_most(f"score float32, {model}", largest(ours, plain), EXACT, "nats")


def near(bench: Bench) -> Check:
    """Of the larger model."""
    ours, plain = scored(bench, "large-student", "bfloat16")
    return at_most("score bf16, large-student", mean(ours, plain), NEAR, "nats in the mean")


def scored(bench: Bench, model: str, dtype: str) -> tuple[list[dict], list[dict]]:
    """By `score` in `dtype`, and by transformers in float32."""
    rows = write_rows(bench.folder / f"rows-{model}.jsonl", model, bench.device)
    name, folder = f"score-{model}-{dtype}", bench.model(model)
    target = bench.folder / f"{name}.jsonl"
    bench.verb(name, "score", "--model", folder, "--input", rows, "--output", target, "--dtype", dtype)
    plain = bench.program("plain_scores", bench.device, "float32", folder, rows, name=f"plain-{model}")
    return read_scores(target), plain


def gopd(bench: Bench, dtype: str, te: bool = True) -> Check:
    kind = f"{dtype}{'' if te else ' without TE'}"
    run = bench.train(tree(bench, f"gopd-{kind.replace(' ', '-')}", dtype=dtype), te=te)
    return sound(f"gopd, 3 steps, {kind}", run, steps=3, dtype=dtype)


def with_te(bench: Bench) -> Check:
    bench.needs_te()
    return sound("gopd, 3 steps, bfloat16 with TE", bench.train(bf16(bench)), steps=3, dtype="bfloat16")


def bf16(bench: Bench) -> dict:
    """The run that others are compared with."""
    return tree(bench, "gopd-bfloat16", dtype="bfloat16")


def grpo(bench: Bench) -> Check:
    asked = {"algorithm": {"type": "grpo"}, "rewards": reward(bench), "teachers": {}}
    given = tree(bench, "grpo", dtype="bfloat16", steps=1) | asked
    given["rollout"]["samples_per_prompt"] = 2
    return sound("grpo, 1 step", bench.train(given), steps=1, dtype="bfloat16")


def sft(bench: Bench) -> Check:
    """On what the teacher writes."""
    given = tree(bench, "sft", dtype="bfloat16", steps=1) | {"algorithm": {"type": "sft"}}
    return sound("sft, 1 step", bench.train(given), steps=1, dtype="bfloat16")


def offload(bench: Bench, how: str) -> Check:
    def run(on: str):
        asked = [f"student.offload={on}", f"teachers.one.offload={on}"]
        return bench.train(tree(bench, f"offload-{on}", dtype="bfloat16", steps=2), *asked, extra=DETERMINISTIC)

    return equal(f"offload {how} and false, 2 steps", run(how).differences(run("false")))
