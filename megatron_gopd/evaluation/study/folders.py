"""Run folders and evaluation folders, read as they lie; nothing in them is changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_gopd.config import Config, read_config
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.answers import parse_answers
from megatron_gopd.runs.rows import read_metrics

QUANTITIES = ("accuracy", "tokens", "truncated")
TARGET_KL = "target_kl"  # SUITE.target_kl.json: {problem id: nats a token}, beside SUITE.jsonl


@dataclass(frozen=True)
class Suite:
    """One benchmark as one model answered it: {quantity: {problem id: mean over the answers to it}}."""

    values: dict[str, dict[str, float]]
    samples: int  # answers to each problem


@dataclass(frozen=True)
class Evaluation:
    """Answers in a folder. `settings` are empty for a training run's own; suites of an unfinished one are none."""

    path: Path
    settings: dict
    suites: dict[str, Suite]
    step: int | None = None


@dataclass(frozen=True)
class Run:
    """A training run. `evaluations`: step -> what was found after it, 0: before training; `teachers`: of theirs."""

    path: Path
    config: Config
    metrics: list[dict] = field(repr=False)
    evaluations: dict[int, Evaluation] = field(repr=False)
    teachers: dict[str, Evaluation] = field(repr=False)

    @property
    def done(self) -> int:
        """Steps done."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def finished(self) -> bool:
        """Every step is done, and the model or the last evaluation is there: weights may have been removed since."""
        steps = self.config.run.steps
        return self.done >= steps and ((self.path / "model").exists() or steps in self.evaluations)

    @property
    def final(self) -> Evaluation | None:
        """The evaluation after the last step; None before there is one."""
        return self.evaluations.get(self.config.run.steps) if self.finished else None

    @property
    def model(self) -> Path:
        """The student after the last step."""
        return (self.path / "model").resolve()

    @property
    def student(self) -> Path:
        """Its initial weights."""
        return self.model_of(self.config.student.model)

    def model_of(self, written: str) -> Path:
        """A model as the configuration writes it; a relative one starts where the run was started."""
        place, named = self.path.resolve().parts, Path(self.config.run.folder, self.config.run.name).parts
        inside = place[-len(named) :] == named and len(place) > len(named)
        return Path(*(place[: -len(named)] if inside else (Path.cwd(),)), written).resolve()


def read_folders(paths: Iterable[Path]) -> tuple[list[Run], list[Evaluation]]:
    """The runs and the stand-alone evaluations in `paths`, at any depth, each once.

    Raises:
        UserError: a path that is or holds neither, or a file in one that cannot be read.
    """
    found: dict[Path, Run | Evaluation] = {}
    for path in paths:
        here = list(_find(path))
        if not here:
            raise UserError(
                f"{path} is no run and holds none: a run's folder has a config.yaml, as train writes it, "
                f"an evaluation's a settings.json, as evaluate --suite writes it"
                if path.is_dir()
                else f"{path} is not a folder; name runs, evaluations, or a folder of them"
            )
        for folder in here:
            if folder.resolve() not in found:
                found[folder.resolve()] = _read(folder)
    runs = [each for each in found.values() if isinstance(each, Run)]
    return runs, [each for each in found.values() if isinstance(each, Evaluation)]


def _find(path: Path) -> Iterator[Path]:
    """The folders of runs and evaluations under `path`; what lies inside of one belongs to it."""
    for inner, folders, files in os.walk(path):
        if "config.yaml" in files or "settings.json" in files:
            folders.clear()
            yield Path(inner)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _read(folder: Path) -> Run | Evaluation:
    if (folder / "config.yaml").exists():
        return _run(folder)
    settings = _json(folder / "settings.json")
    if not isinstance(settings, dict) or not settings.keys() & {"model", "target"}:
        raise UserError(f"{folder / 'settings.json'} names neither a model nor a target: it is not an evaluation's")
    law = settings.get("target")
    if law and not (isinstance(law, dict) and {"teacher", "reference", "lambda"} <= law.keys()):
        raise UserError(f"{folder / 'settings.json'}: a target has a teacher, a reference and a lambda")
    return Evaluation(folder, settings, _suites(folder))


def _run(folder: Path) -> Run:
    config = _config(folder)
    evaluations = {}
    for summary in sorted((folder / "evaluation").glob("*/summary.json")):
        step = _json(summary).get("step")
        evaluations[step] = Evaluation(summary.parent, {}, _suites(summary.parent), step)
    teachers = {each.parent.name: each.parent for each in (folder / "evaluation").glob("teachers/*/summary.json")}
    answers = {name: Evaluation(path, {}, _suites(path)) for name, path in teachers.items() if name in config.teachers}
    return Run(folder, config, read_metrics(folder / "metrics.jsonl").rows, evaluations, answers)


def _config(folder: Path) -> Config:
    try:
        return read_config(folder / "config.yaml")
    except UserError as error:
        raise UserError(
            f"{error}\nIf {folder} is a run of another version, leave it out; megatron-gopd view shows what is there"
        ) from None


def _suites(folder: Path) -> dict[str, Suite]:
    """Those that the summary, which is written last, names."""
    if not (folder / "summary.json").exists():
        return {}
    try:
        names = [each["suite"] for each in _json(folder / "summary.json")["suites"]]
    except (KeyError, TypeError):
        raise UserError(f"{folder / 'summary.json'} lists no suites; evaluate again") from None
    return {name: _suite(folder / f"{name}.jsonl") for name in names}


def _suite(file: Path) -> Suite:
    answers: dict[str, list] = {}
    for row in parse_answers(file, _text(file).split("\n")):
        answers.setdefault(row.id, []).append(row)
    values = {
        "accuracy": {id: _mean(row.score for row in rows) for id, rows in answers.items()},
        "tokens": {id: _mean(row.tokens for row in rows) for id, rows in answers.items()},
        "truncated": {id: _mean(row.finish_reason == "length" for row in rows) for id, rows in answers.items()},
    }
    beside = file.with_suffix(f".{TARGET_KL}.json")
    if beside.exists():
        values[TARGET_KL] = _figures(beside)
    return Suite(values, max(map(len, answers.values()), default=0))


def _figures(file: Path) -> dict[str, float]:
    found = _json(file)
    if not isinstance(found, dict) or not all(isinstance(value, float | int) for value in found.values()):
        raise UserError(f"{file} is not a figure for each problem id; measure again")
    return found


def _json(file: Path):
    try:
        return json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); put it back from a copy, or evaluate again") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}; put it back from a copy, or evaluate again") from None


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
