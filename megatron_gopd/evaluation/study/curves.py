"""Every metric of any runs over their steps, a line a run under its name."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_gopd.evaluation.study import drawing
from megatron_gopd.evaluation.study.folders import Run
from megatron_gopd.evaluation.study.scores import smoothed
from megatron_gopd.evaluation.study.settings import Study

FIRST = {  # in this order; what else a run has follows under its own name
    "loss": "loss",
    "reverse_kl": "reverse KL (nats/token)",
    "reward": "reward",
    "response_tokens_mean": "response length (tokens)",
    "truncated_fraction": "cut off at the limit (share)",
    "entropy": "entropy (nats/token)",
    "grad_norm": "gradient norm",
    "train_rollout_logprob_abs_diff": "engine − trainer (nats/token)",
    "advantage_mean": "advantage (nats/token)",
    "lr": "learning rate",
}
NOT_DRAWN = ("step", "tokens_per_s", "staleness_mean", "staleness_max", "train_rollout_logprob_abs_diff_max")
SMOOTHING, RAW_ALONE = 0.8, 15  # so many steps are drawn as they are
EXACT = ("lr",)  # without noise
COLUMNS, AT_A_TIME = 4, 12  # runs in a figure, or its colours are told apart no more
STYLES = ("-", "--")
ERROR = "/standard_error"  # of the metric before it
LONGEST = 30  # characters of a title's line


def curves(study: Study) -> Iterator[tuple[str, list[Run]]]:
    """(whose, runs drawn together)."""
    runs = [run for run in study.runs if _panels([run])]
    for first in range(0, len(runs), AT_A_TIME):
        group = runs[first : first + AT_A_TIME]
        whose = "" if len(runs) <= AT_A_TIME else f": runs {first + 1} to {first + len(group)} of {len(runs)}"
        yield whose, group


def draw(runs: list[Run]) -> drawing.Drawn:
    """Thin: as measured; thick: an exponential moving average."""
    panels = _panels(runs)
    columns = min(COLUMNS, len(panels))
    figure, axes = drawing.panels(-(-len(panels) // columns), columns, height=1.9, width=max(2.7 * columns, 5.4))
    for axis, (metric, title) in zip(axes.flat, panels.items(), strict=False):
        for number, run in enumerate(runs):
            _line(axis, run, metric, number)
        axis.set(title=title, xlabel="step")
        drawing.readable(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    drawing.legend(figure, *axes.flat)
    return drawing.finish(figure)


def _line(axis, run: Run, metric: str, number: int) -> None:
    points = {row["step"]: row[metric] for row in run.metrics if metric in row}
    if not points:
        return
    colours = len(drawing.COLOURS)
    style = {"color": drawing.COLOURS[number % colours], "linestyle": STYLES[number // colours % len(STYLES)]}
    marker = "o" if len(points) < 3 else None
    values = list(points.values())
    if errors := {row["step"]: row[metric + ERROR] for row in run.metrics if metric + ERROR in row}:
        bars = [errors.get(step, 0.0) for step in points]
        axis.errorbar(list(points), values, bars, fmt="none", elinewidth=1.0, capsize=2.5, ecolor=style["color"])
    if len(points) > RAW_ALONE and metric not in EXACT:
        axis.plot(list(points), values, linewidth=0.6, alpha=0.3, **style)
        values = smoothed(values, SMOOTHING)
    axis.plot(list(points), values, linewidth=1.6, marker=marker, markersize=3, label=run.config.run.name, **style)


def _panels(runs: list[Run]) -> dict[str, str]:
    """metric -> title: of the first, and of whatever the runs' objectives and evaluations tell besides."""
    there = dict.fromkeys(metric for run in runs for row in run.metrics for metric in row)
    own = [name for name in there if name not in FIRST and name not in NOT_DRAWN and _of_all(name)]
    return {name: title for name, title in FIRST.items() if name in there} | {name: _titled(name) for name in own}


def _of_all(name: str) -> bool:
    """Neither of one teacher nor of one phase; an error is a bar of its metric."""
    return "/" not in name or (name.startswith("eval/") and not name.endswith(ERROR))


def _titled(name: str) -> str:
    """In two lines where one is wider than its panel."""
    return name if len(name) <= LONGEST else "/\n".join(name.rsplit("/", 1))
