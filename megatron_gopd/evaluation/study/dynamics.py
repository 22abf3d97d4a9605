"""How training went: rows of metrics, averaged over seeds, smoothed, compared step by step."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_gopd.evaluation.study.compare import Choice
from megatron_gopd.evaluation.study.scores import Measured, in_blocks
from megatron_gopd.evaluation.study.settings import Setting
from megatron_gopd.evaluation.study.variants import Variant, gradient_of
from megatron_gopd.evaluation.study.verdicts import Evidence

METRICS = {"reward": "reward", "response_tokens_mean": "tokens", "entropy": "entropy"}  # metric -> quantity


def series(variant: Variant, metric: str) -> dict[int, dict[int, float]]:
    """{seed: {step: value}} of the runs that have the metric."""
    found = {
        run.config.run.seed: {row["step"]: row[metric] for row in run.metrics if metric in row} for run in variant.runs
    }
    return {seed: steps for seed, steps in found.items() if steps}


def mean_over_seeds(variant: Variant, metric: str) -> dict[int, float]:
    """{step: mean} over the seeds that have come so far."""
    found = series(variant, metric)
    steps = sorted({step for each in found.values() for step in each})
    at = {step: [each[step] for each in found.values() if step in each] for step in steps}
    return {step: sum(values) / len(values) for step, values in at.items()}


def teachers_in(variants: list[Variant], metric: str) -> list[str]:
    """The teachers of whom METRIC/TEACHER was recorded."""
    names = [name for variant in variants for run in variant.runs for row in run.metrics[:2] for name in row]
    return list(dict.fromkeys(name.partition("/")[2] for name in names if name.startswith(f"{metric}/")))


def compare_training(
    recipes: Iterator[tuple[Setting, list[Variant]]], ours: Choice, theirs: Choice, metric: str
) -> Iterator[Evidence]:
    """ours - theirs over the second half of training, step by step; standard errors are over blocks of steps."""
    for setting, recipe in recipes:
        one, other = ours(recipe), theirs(recipe)
        if one and other and not one.unfinished and not other.unfinished:
            a, b = (_second_half(each, metric) for each in (one, other))
            if a and b:
                value = Measured.difference(a, b)
                steps = f"steps {one.steps // 2 + 1} to {one.steps}"
                where = ", ".join(filter(None, [setting.title, steps, gradient_of(one.recipe)]))
                yield Evidence(where, f"{one.method} − {other.method}", value, METRICS[metric], items="blocks of steps")


def _second_half(variant: Variant, metric: str) -> dict[int, dict[str, float]]:
    return {
        seed: in_blocks({step: value for step, value in steps.items() if 2 * step > variant.steps})
        for seed, steps in series(variant, metric).items()
    }
