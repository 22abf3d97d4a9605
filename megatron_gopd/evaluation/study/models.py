"""Which model is which: by its folder, what made it, how large it is, and what was measured of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from megatron_gopd.config.schema import Model, Teacher
from megatron_gopd.evaluation.study.folders import Evaluation, Run
from megatron_gopd.evaluation.study.scores import Measured, Seed, Values, average

SHAPE = "model_type hidden_size num_hidden_layers intermediate_size num_attention_heads num_experts".split()


@dataclass(frozen=True)
class Subject:
    """Whoever answered: a model, a method's students of several seeds, or an exact target."""

    label: str
    evaluations: dict[Seed, Evaluation] = field(default_factory=dict, repr=False)

    def values(self, suite: str, quantity: str) -> Values:
        """Empty where it was not asked."""
        asked = {seed: each.suites[suite] for seed, each in self.evaluations.items() if suite in each.suites}
        return {seed: each.values[quantity] for seed, each in asked.items() if quantity in each.values}

    @property
    def suites(self) -> list[str]:
        return list(dict.fromkeys(name for each in self.evaluations.values() for name in each.suites))

    def measured(self, suites: Sequence[str], quantity: str = "accuracy") -> Measured | None:
        """The mean over suites; None unless all of them were asked."""
        values = [self.values(suite, quantity) for suite in suites]
        return average([Measured.of(each) for each in values]) if values and all(values) else None

    def minus(self, other: Subject | None, suites: Sequence[str], quantity: str = "accuracy") -> Measured | None:
        """The mean over suites of the paired difference; None unless both answered the same problems of each."""
        if other is None or not suites:
            return None
        parts = [Measured.difference(self.values(name, quantity), other.values(name, quantity)) for name in suites]
        return average(parts) if all(parts) else None


@dataclass(frozen=True)
class Merge:
    """A model that `merge` wrote, as its merge.json says."""

    teachers: tuple[Path, ...]
    base: Path | None
    alpha: float


@dataclass(frozen=True)
class Baseline:
    """What a model's baseline.json says: a method of one's own, and what it was given."""

    name: str
    student: Path
    teachers: tuple[Path, ...]  # whose tasks it was trained on
    steps: int


class Models:
    """What the runs and evaluations at hand say about models."""

    def __init__(self, runs: list[Run], evaluations: list[Evaluation]):
        self._runs, self._evaluations = runs, evaluations

    def subject(self, model: Path, label: str = "") -> Subject:
        """What was measured of it: by `evaluate`, else by the run that made it, by one it teaches, by one that starts
        from it.

        A suite's answers come from the first of these that has them.
        """
        whole = {name: suite for found in reversed(self._found(model)) for name, suite in found.suites.items()}
        evaluations = {None: Evaluation(model, {}, whole)} if whole else {}
        return Subject(label or self.name(model), evaluations)

    def maker(self, model: Path) -> Run | None:
        return next((run for run in self._runs if run.model == model), None)

    def name(self, model: Path) -> str:
        """As a reader knows it: the run that made it, or its folder."""
        run = self.maker(model)
        return run.config.run.name if run else model.name

    def shape(self, model: Path) -> dict | None:
        """What config.json says of its size, there or in a run that starts from it; None without one."""
        started = [run.model for run in self._runs if run.student == model]
        for folder in (model, *started):
            with contextlib.suppress(OSError, ValueError):
                config = json.loads((folder / "config.json").read_text())
                return {key: config.get(key) for key in SHAPE}
        return None

    @cached_property
    def merges(self) -> dict[Path, Merge]:
        """The merged models among those that were evaluated."""
        found = {}
        for evaluation in self._evaluations:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                model = Path(evaluation.settings["model"])
                said = json.loads((model / "merge.json").read_text())
                teachers = tuple(sorted(Path(each).resolve() for each in said["teachers"]))
                found[model.resolve()] = Merge(teachers, Path(said["base"]).resolve(), said["alpha"])
        return found

    @cached_property
    def baselines(self) -> dict[Baseline, dict[Seed, Evaluation]]:
        """Of each, the students that were evaluated, by their seeds."""
        found: dict[Baseline, dict[Seed, Evaluation]] = {}
        for evaluation in self._evaluations:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                said = json.loads((Path(evaluation.settings["model"]) / "baseline.json").read_text())
                teachers = tuple(sorted(Path(each).resolve() for each in said["teachers"]))
                baseline = Baseline(said["name"], Path(said["student"]).resolve(), teachers, said["steps"])
                found.setdefault(baseline, {})[said["seed"]] = evaluation
        return found

    def targets(self, teacher: Path, reference: Path) -> dict[float, Subject]:
        """{lambda: answers sampled from pi*^lambda pi_ref^(1-lambda)/Z itself}, the smallest lambda first."""
        found = {}
        for evaluation in self._evaluations:
            law = evaluation.settings.get("target")
            if law and (Path(law["teacher"]).resolve(), Path(law["reference"]).resolve()) == (teacher, reference):
                found[law["lambda"]] = Subject(f"exact target λ={law['lambda']:g}", {None: evaluation})
        return dict(sorted(found.items()))

    def _found(self, model: Path) -> list[Evaluation]:
        alone = [each for each in self._evaluations if Path(each.settings.get("model", "/")).resolve() == model]
        made = [run.final for run in self._runs if run.model == model and run.final]
        taught = [
            evaluation
            for run in self._runs
            for name, evaluation in run.teachers.items()
            if teacher_of(run, run.config.teachers[name]) == model
        ]
        started = [run.evaluations[0] for run in self._runs if run.student == model and 0 in run.evaluations]
        return alone + made + taught + started


def teacher_of(run: Run, teacher: Teacher) -> Path:
    """The folder of a teacher, or, where it reads another prompt than the student, a name that is no model's."""
    folder = run.model_of(teacher.model)
    plain = teacher.prompt in ("student_tokens", "own_template")
    return folder if plain else folder / f"(reads {teacher.prompt!r})"


def reference_of(run: Run, teacher: str) -> Path:
    reference: Model = run.config.reference_of(teacher)
    return run.model_of(reference.model)
