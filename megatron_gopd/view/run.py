"""A run's folder as it lies: finished or not, of this version or another. What is missing is told, not refused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from megatron_gopd.errors import UserError
from megatron_gopd.runs import last_words
from megatron_gopd.runs.trajectories import steps_kept
from megatron_gopd.view.files import read_config, read_metrics

STALE = 10  # times a step's seconds without a new row: nothing runs any more
USUAL = ("loss", "entropy", "response_tokens_mean", "truncated_fraction", "timing/step_s")  # of every algorithm


@dataclass
class Run:
    """One run. `notes`: what of it could not be read, or is not there, in sentences."""

    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, float]] = field(repr=False)  # rising steps, each once
    notes: list[str]
    name: str = ""

    @classmethod
    def read(cls, path: Path) -> Run:
        notes: list[str] = []
        config = read_config(path / "config.yaml", notes)
        run = cls(path, config, read_metrics(path / "metrics.jsonl", notes), notes)
        run.name = str(run.setting("run.name") or path.resolve().name)
        missing = [name for name in USUAL if run.trained and not run.has(name)]
        if missing:
            named = ", ".join(missing)
            notes.append(f"metrics.jsonl has no {named}: it is of another version; what needs them is left out")
        if not steps_kept(path / "trajectories"):
            notes.append(f"there are no kept responses: {run._why_none()}")
        return run

    def _why_none(self) -> str:
        logging = self.setting("logging")
        if not isinstance(logging, dict) or "trajectories" not in logging:
            return "its configuration, of another version, does not know of them"
        return "logging.trajectories is null" if logging["trajectories"] is None else "none yet, or they were removed"

    def setting(self, key: str) -> Any:
        """The value of a dotted key of its configuration; None where there is none."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def has(self, metric: str) -> bool:
        return any(metric in row for row in self.metrics)

    def series(self, metric: str) -> list[float]:
        """Its values in the order of steps; steps without one are left out."""
        return [row[metric] for row in self.metrics if metric in row]

    @property
    def names(self) -> list[str]:
        """Of all metrics, in the order in which rows name them."""
        return list(dict.fromkeys(name for row in self.metrics for name in row if name != "step"))

    @property
    def trained(self) -> list[dict[str, float]]:
        """The rows of steps: that of an evaluation before the first, step 0, is none."""
        return [row for row in self.metrics if row["step"]]

    @property
    def done(self) -> int:
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def asked(self) -> int | None:
        """Steps, by its configuration."""
        steps = self.setting("run.steps")
        return steps if isinstance(steps, int) else None

    @property
    def finished(self) -> bool:
        return bool(self.asked) and self.done >= self.asked and (self.path / "model").exists()

    @property
    def seems_alive(self) -> bool:
        """Whether its newest row is young, for the time that its steps take."""
        seconds = self.series("timing/step_s")
        if not seconds or self.finished or self.last_error:
            return False
        return time.time() - (self.path / "metrics.jsonl").stat().st_mtime < max(60.0, STALE * median(seconds))

    @property
    def last_error(self) -> str | None:
        """What ended the newest attempt, by its logs."""
        said = last_words(self.path / "logs" / "latest")
        return said and said[:400]


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs that `paths` are or hold at any depth, each once, with names that tell them apart.

    Raises UserError: a path that is no run and holds none.
    """
    folders: dict[Path, None] = {}
    for path in paths:
        here = list(_folders(path))
        if not here:
            what = "is no run and holds none" if path.is_dir() else "is not a folder"
            raise UserError(f"{path} {what}: a run has a config.yaml or a metrics.jsonl; name runs/NAME")
        folders |= dict.fromkeys(folder.resolve() for folder in here)
    runs = [Run.read(folder) for folder in folders]
    _tell_apart(runs)
    return runs


def _folders(path: Path) -> Iterator[Path]:
    """Folders of runs; an earlier attempt, which lies in the logs of a run, belongs to that."""
    for inner, folders, files in os.walk(path):
        if {"config.yaml", "metrics.jsonl"} & set(files):
            folders.clear()
            yield Path(inner)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _tell_apart(runs: list[Run]) -> None:
    """Runs of one name are called by as much of their path as it takes."""
    for name in {run.name for run in runs}:
        same = [run for run in runs if run.name == name]
        if len(same) > 1:
            start = Path(os.path.commonpath([run.path.parent for run in same]))
            for run in same:
                run.name = str(run.path.relative_to(start))
