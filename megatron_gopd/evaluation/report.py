"""Measurements for people: a table, two answers side by side, a curve."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from megatron_gopd.evaluation.probe import Measurement, compare
from megatron_gopd.runs import print_table, write_text
from megatron_gopd.runs.atomic import atomic_file
from megatron_gopd.runs.rows import read_metrics
from megatron_gopd.terminal import say

PANELS = {
    "reverse_kl": "reverse KL (nats/token)",
    "reward": "reward",
    "loss": "loss",
    "response_tokens_mean": "response length (tokens)",
    "entropy": "entropy (nats/token)",
}


def write_measurement(measurement: Measurement, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(measurement), indent=1) + "\n")


def print_comparison(before: Measurement, after: Measurement) -> None:
    """Means over held-out prompts with standard errors; the difference is paired prompt by prompt."""
    rows = [(name, *(str(each or "") for each in estimates)) for name, *estimates in compare(before, after)]
    title = f"Held-out prompts ({len(before.finished)}), mean +- standard error"
    print_table(title, ["", "before", "after", "difference (paired)", "the teacher"], rows)
    for first, last in zip(before.greedy, after.greedy, strict=True):
        say(f"\nQ: {first['prompt']}\nbefore: {first['answer']}\nafter:  {last['answer']}")


def plot_curve(metrics: Path, target: Path) -> None:
    """What is learned, response length and entropy over the steps in a metrics.jsonl, as PNG.

    Learned is the reverse KL, the reward, or both; where there is neither, the loss.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from megatron_gopd.evaluation.study.drawing import readable

    rows = [row for row in read_metrics(metrics).rows if row["step"]]
    if not rows:  # but that of an evaluation before the first step
        return
    learned = [key for key in ("reverse_kl", "reward") if all(key in row for row in rows)] or ["loss"]
    panels = [*learned, "response_tokens_mean", "entropy"]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4 * len(panels), 3.2), layout="constrained")
    for axis, key in zip(axes, panels, strict=True):
        axis.plot([row["step"] for row in rows], [row[key] for row in rows], marker="o", markersize=3)
        axis.set_xlabel("step")
        axis.set_ylabel(PANELS[key])
        axis.grid(alpha=0.3)
        readable(axis)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as file:  # it is looked at while it is drawn anew
        figure.savefig(file, dpi=120, format="png")
    pyplot.close(figure)
