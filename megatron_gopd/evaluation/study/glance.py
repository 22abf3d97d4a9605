"""Any runs at a glance: what tells them apart, how long their phases take, and how their numbers went."""

from __future__ import annotations

from statistics import median

from megatron_gopd.evaluation.study.folders import Run
from megatron_gopd.evaluation.study.settings import Study
from megatron_gopd.evaluation.study.variants import flat

BESIDE = {"run.name", "run.folder"}  # different in any two runs
LONGEST = 40  # characters of a value
PHASES = {phase: phase for phase in ("rollout", "score", "grade", "train", "sync", "evaluate", "checkpoint")} | {
    "wait_for_rollout": "rollout: waits",
    "wait_for_score": "score: waits",
    "servers_paused": "sync: servers paused",
}
# what is told of each run: metric -> heading; where none of the runs has it, it is left out
NUMBERS = {
    "loss": "loss",
    "reverse_kl": "reverse KL (nats/token)",
    "reward": "reward",
    "response_tokens_mean": "response tokens",
    "entropy": "entropy (nats/token)",
    "grad_norm": "gradient norm",
}


def difference_rows(study: Study) -> list[list[str]]:
    """Headings, then each run's values of the keys that are not the same in all; empty where all are."""
    settings = [dict(flat(run.config.model_dump(mode="json", by_alias=True))) for run in study.runs]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if key not in BESIDE]
    told = [key for key in keys if len({repr(each.get(key)) for each in settings}) > 1]
    if not told:
        return []
    rows = [[_shown(each[key]) if key in each else "–" for key in told] for each in settings]
    return [["run", *told], *([run.config.run.name, *row] for run, row in zip(study.runs, rows, strict=True))]


def number_rows(study: Study) -> list[list[str]]:
    """Headings, then for each run what a metric was in the first and the last tenth of its steps."""
    runs = [run for run in study.runs if run.metrics]
    told = {metric: heading for metric, heading in NUMBERS.items() if any(metric in run.metrics[-1] for run in runs)}
    rows = [[run.config.run.name, *(_from_to(run, metric) for metric in told)] for run in runs]
    return [["run", *told.values()], *rows] if rows else []


def timing_rows(study: Study) -> list[list[str]]:
    """Headings, then each run's seconds: of a step, of its phases, and of all its steps together."""
    runs = [run for run in study.runs if any("timing/step_s" in row for row in run.metrics)]
    phases = [phase for phase in PHASES if any(f"timing/{phase}_s" in row for run in runs for row in run.metrics)]
    rows = [[run.config.run.name, *(_seconds(run, phase) for phase in ("step", *phases)), *_whole(run)] for run in runs]
    headings = [PHASES[phase] for phase in phases]
    return [["run", "a step", *headings, "tokens/s", "all steps (h)"], *rows] if rows else []


def names(study: Study, most: int = 4) -> str:
    """Of the runs, as a title tells them."""
    found = [run.config.run.name for run in study.runs]
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return ", ".join([*found[:most], *more]) or "no runs"


def _from_to(run: Run, metric: str) -> str:
    values = [row[metric] for row in run.metrics if metric in row]
    if not values:
        return "–"
    few = max(1, len(values) // 10)
    first, last = sum(values[:few]) / few, sum(values[-few:]) / few
    return f"{first:.3g} → {last:.3g}" if len(values) > 1 else f"{last:.3g}"


def _seconds(run: Run, phase: str) -> str:
    found = [row[f"timing/{phase}_s"] for row in run.metrics if f"timing/{phase}_s" in row]
    return f"{median(found):.3g}" if found else "–"


def _whole(run: Run) -> list[str]:
    rates = [row["tokens_per_s"] for row in run.metrics if "tokens_per_s" in row]
    hours = sum(row.get("timing/step_s", 0.0) for row in run.metrics) / 3600
    return [f"{median(rates):,.0f}" if rates else "–", f"{hours:.2f}"]


def _shown(value: object) -> str:
    """The end of what is long, where paths differ."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else f"…{text[-LONGEST:]}"
