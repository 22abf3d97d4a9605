"""Runs by what their configurations say: the method, and the runs that differ in nothing but their seed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_gopd.config.same_run import MAY_CHANGE
from megatron_gopd.evaluation.study.folders import Run
from megatron_gopd.evaluation.study.models import Models, Subject, reference_of, teacher_of

ORDER = ("baseline", "sft", "expo", "gopd", "gopd of several lambdas", "own", "grpo")
GRADIENT = "algorithm.gradient"
# what a method is, what a run measures and where it lies: the rest of a configuration is its recipe
NOT_RECIPE = re.compile(
    r"run\.(name|seed|folder)|algorithm\.(type|lambda)|(algorithm|teachers\.[^.]+)\.reference(\..*)?|teachers\.[^.]+\.lambda"
    r"|(evaluation|sandbox)(\..*)?|rewards"
)


@dataclass(frozen=True)
class Method:
    """One of the paper's: SFT, ExPO, OPD (lambda 1), ExOPD (lambda above 1), what lies between, and GRPO; or a
    baseline of one's own."""

    kind: str  # one of ORDER
    strength: float = 1.0  # lambda, or ExPO's alpha
    corrected: bool = False  # the reference is another model than the student was: reward correction
    name: str = ""  # of what is none of the paper's: a baseline, several lambdas, an objective of one's own

    def __str__(self) -> str:
        if self.kind in ("baseline", "own"):
            return self.name
        if self.kind == "expo":
            return f"ExPO α={self.strength:g}"
        if self.kind in ("sft", "grpo"):
            return self.kind.upper()
        ours = "OPD" if self.strength == 1 else f"{'ExOPD' if self.strength > 1 else 'G-OPD'} λ={self.strength:g}"
        name = self.name or ours
        return f"{name}, reward correction" if self.corrected else name

    @property
    def place(self) -> tuple:
        """In a table."""
        return ORDER.index(self.kind), self.strength, self.corrected


@dataclass(frozen=True)
class Variant:
    """One method with one recipe, from one or several seeds."""

    method: Method
    student: Path  # its initial weights
    teachers: dict[str, Path]  # name -> folder
    references: dict[str, Path]  # of each teacher
    recipe: dict[str, object] = field(repr=False)
    runs: tuple[Run, ...] = field(repr=False)
    subject: Subject  # the students after the last step

    @property
    def steps(self) -> int | None:
        return self.recipe.get("run.steps")

    @property
    def exact(self) -> bool:
        """Whether the gradient is of whole distributions."""
        return self.recipe.get(GRADIENT) == "exact"

    @property
    def budget(self) -> str:
        """How long, and with which gradient it was trained, in words."""
        return ", ".join(filter(None, [f"{self.steps} steps" if self.steps else "", gradient_of(self.recipe)]))

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if not run.finished]

    @property
    def named(self) -> str:
        """The label, and whose it is."""
        return f"{self.label} ({', '.join(run.config.run.name for run in self.runs[:3])}{', …' * (len(self.runs) > 3)})"

    @property
    def label(self) -> str:
        """The method and how far it has come."""
        far = ", ".join(f"{run.done} of {self.steps} steps" for run in self.unfinished)
        return f"{self.method}{f' ({far})' if far else ''}"


def variants_of(runs: list[Run], models: Models) -> list[Variant]:
    """Every method in every recipe, and every merged model; a seed counts once."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = repr((method_of(run), _references(run), sorted(recipe_of(run).items())))
        if all(run.config.run.seed != other.config.run.seed for other in groups.setdefault(key, [])):
            groups[key].append(run)
    trained = [_variant(tuple(sorted(group, key=lambda run: run.config.run.seed))) for group in groups.values()]
    return [*trained, *_merged(models), *_baselines(models)]


def method_of(run: Run) -> Method:
    """By the algorithm, lambda, and whether the reference is the student's own initial model."""
    algorithm = run.config.algorithm
    references = _references(run).values()
    corrected = bool(references) and all(each != run.student for each in references)
    lambdas = {name: run.config.lambda_of(name) for name in run.config.teachers}
    if len(set(lambdas.values())) > 1:
        each = ", ".join(f"λ={value:g} ({name})" for name, value in lambdas.items())
        return Method("gopd of several lambdas", algorithm.strength, corrected, f"G-OPD {each}")
    if algorithm.KIND == "own":
        return Method("own", name=Path(algorithm.type).name)  # FILE.py:FUNCTION, wherever the file lies
    return Method(algorithm.KIND, next(iter(lambdas.values()), algorithm.strength), corrected)


def recipe_of(run: Run) -> dict[str, object]:
    """{dotted key: value} of what a run's configuration says beyond its method."""
    whole = dict(flat(run.config.model_dump(mode="json", by_alias=True)))
    return {key: value for key, value in whole.items() if not _is_beside(key)}


def gradient_of(recipe: dict[str, object]) -> str:
    """In words, where it is not the paper's."""
    asked = recipe.get(GRADIENT, "sampled")
    other = ", forward KL" if recipe.get("algorithm.divergence") == "forward_kl" else ""
    return "" if asked == "sampled" else f"{asked} gradient{other}"


def apart(variants: list[Variant], but: tuple[str, ...] = ()) -> list[str]:
    """For each of several, the parts of its recipe, `but` these, in which it differs from another, as `lr 0.001`."""
    keys = dict.fromkeys(key for variant in variants for key in variant.recipe if key not in but)
    differing = [key for key in keys if len({repr(variant.recipe.get(key)) for variant in variants}) > 1]
    return [", ".join(f"{key.rpartition('.')[2]} {each.recipe.get(key)}" for key in differing) for each in variants]


def _is_beside(key: str) -> bool:
    return key != "run.steps" and bool(NOT_RECIPE.fullmatch(key) or MAY_CHANGE.fullmatch(key))


def _variant(runs: tuple[Run, ...]) -> Variant:
    first = runs[0]
    method = method_of(first)
    evaluations = {run.config.run.seed: run.final for run in runs if run.final}
    return Variant(
        method=method,
        student=first.student,
        teachers={name: teacher_of(first, teacher) for name, teacher in first.config.teachers.items()},
        references=_references(first),
        recipe=recipe_of(first),
        runs=runs,
        subject=Subject(str(method), evaluations),
    )


def _merged(models: Models) -> Iterator[Variant]:
    for model, merge in models.merges.items():
        if merge.alpha:  # without, it is a mean, and no method of the paper
            method = Method("expo", merge.alpha)
            teachers = {models.name(each): each for each in merge.teachers}
            yield Variant(method, merge.base, teachers, {}, {}, (), models.subject(model, str(method)))


def _baselines(models: Models) -> Iterator[Variant]:
    for baseline, evaluations in models.baselines.items():
        method = Method("baseline", name=baseline.name)
        teachers = {models.name(each): each for each in baseline.teachers}
        subject = Subject(str(method), evaluations)
        yield Variant(method, baseline.student, teachers, {}, {"run.steps": baseline.steps}, (), subject)


def _references(run: Run) -> dict[str, Path]:
    """Only where they are used."""
    return {name: reference_of(run, name) for name in run.config.teachers if run.config.extrapolates(name)}


def flat(tree: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from flat(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree
