"""What was read: every run and how far it has come, every evaluation, and what makes them hard to compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from megatron_gopd.evaluation.study.folders import Evaluation, Run
from megatron_gopd.evaluation.study.models import Subject
from megatron_gopd.evaluation.study.numbers import with_error
from megatron_gopd.evaluation.study.settings import Study
from megatron_gopd.evaluation.study.variants import gradient_of, method_of, recipe_of

RUN_HEADINGS = ["run", "method", "student", "teachers", "seed", "steps", "s a step", "benchmarks after the last step"]
LIMITS = ["lambda_limit/p01", "lambda_limit/unbounded", "teacher_reference_tv"]
LIMIT_HEADINGS = ["run", "λ", "λ limit of 1 % of prefixes", "prefixes without one", "teacher − reference"]
LIMIT_CAPTION = (
    "Medians over the steps. At a prefix's limit the fixed point gives all tokens but the teacher's favourite 1/cap of "
    "what the teacher gives them, cap being that of the rollout correction; 1 % of the limits there are lie below this "
    "one. Last, the total variation of teacher and reference, a mean over prefixes. A λ beyond the limit is no error."
)
ASKED_HEADINGS = [
    "of",
    "benchmark",
    "problems",
    "answers to each",
    "accuracy (%)",
    "tokens",
    "truncated (%)",
    "at most",
]


def run_rows(study: Study) -> list[list[str]]:
    return [_run(study, run) for run in study.runs]


def _run(study: Study, run: Run) -> list[str]:
    config = run.config
    return [
        config.run.name,
        ", ".join(filter(None, [str(method_of(run)), gradient_of(recipe_of(run))])),
        study.models.name(run.model_of(config.student.model)),
        ", ".join(config.teachers or ()),
        str(config.run.seed),
        str(config.run.steps) if run.finished else f"{run.done} of {config.run.steps}, unfinished",
        _median(run, "timing/step_s", 2),
        _benchmarks(run),
    ]


def limit_rows(study: Study) -> list[list[str]]:
    """Of the runs that looked at whole laws: lambda, and how far the teachers allow it to go."""
    return [
        [
            run.config.run.name,
            ", ".join(dict.fromkeys(f"{run.config.lambda_of(name):g}" for name in run.config.teachers)),
            *(_median(run, metric, 2) for metric in LIMITS),
        ]
        for run in study.runs
        if any(metric in row for row in run.metrics for metric in LIMITS)
    ]


def _median(run: Run, metric: str, digits: int) -> str:
    """Over the steps that have it."""
    values = [row[metric] for row in run.metrics if metric in row]
    return f"{median(values):.{digits}f}" if values else "–"


def _benchmarks(run: Run) -> str:
    if run.final:
        return ", ".join(run.final.suites)
    if not run.finished:
        return f"not yet; newest after step {max(run.evaluations)}" if run.evaluations else "not yet"
    return "no evaluation"


@dataclass(frozen=True)
class Asked:
    """Answers to one benchmark, and under which limits they were sampled."""

    whose: str
    suite: str
    evaluation: Evaluation
    limit: int | None  # tokens of a response
    temperature: float | None

    def row(self) -> list[str]:
        subject, suite = Subject(self.whose, {None: self.evaluation}), self.evaluation.suites[self.suite]
        figures = {name: subject.measured([self.suite], name) for name in ("accuracy", "tokens", "truncated")}
        cells = [with_error(value, name) for name, value in figures.items()]
        return [
            self.whose,
            self.suite,
            str(figures["accuracy"].items),
            str(suite.samples),
            *cells,
            str(self.limit or "–"),
        ]


def asked(study: Study) -> list[Asked]:
    """Every benchmark of every evaluation: stand-alone ones, then those of runs."""
    return [
        Asked(whose, suite, evaluation, limit, temperature)
        for whose, evaluation, limit, temperature in (*_alone(study), *_of_runs(study))
        for suite in evaluation.suites
    ]


def asked_rows(study: Study) -> list[list[str]]:
    return [each.row() for each in asked(study)]


def warnings(study: Study) -> list[str]:
    """What a reader must know before the figures: what is not whole, not known, or not asked alike."""
    found = [
        f"{run.config.run.name} is unfinished: {run.done} of {run.config.run.steps} steps; none of its figures is in a "
        f"table or speaks for a claim"
        for run in study.runs
        if not run.finished
    ]
    found += [f"{each.path} is unfinished and was left out" for each in study.evaluations if not each.suites]
    found += [
        f"{setting.title}: a model's config.json is missing, so its size is not known, and taken for the student's"
        for setting in study.settings
        if setting.strong is None
    ]
    conditions: dict[str, dict[tuple, str]] = {}
    for each in asked(study):
        conditions.setdefault(each.suite, {}).setdefault((each.limit, each.temperature), each.whose)
    for suite, kinds in conditions.items():
        if len(kinds) > 1:
            said = "; ".join(f"{limit} tokens at temperature {at} ({whose})" for (limit, at), whose in kinds.items())
            found.append(f"{suite} was not asked in one way, so differences are not of models alone: {said}")
    return found


def _alone(study: Study) -> Iterator[tuple[str, Evaluation, int | None, float | None]]:
    for each in study.evaluations:
        settings = each.settings
        if law := settings.get("target"):
            whose = f"exact target of {Path(law['teacher']).name}, λ={law['lambda']:g}"
        else:
            whose = study.models.name(Path(settings["model"]).resolve())
        yield whose, each, settings.get("max_response_tokens"), settings.get("temperature")


def _of_runs(study: Study) -> Iterator[tuple[str, Evaluation, int | None, float | None]]:
    for run in study.runs:
        config = run.config
        limit = config.evaluation and config.evaluation.suite_max_response_tokens
        for name, evaluation in run.teachers.items():
            whose = f"teacher {name} of {config.run.name}"
            yield whose, evaluation, limit or config.rollout.max_response_tokens, config.rollout.temperature
        for step, evaluation in sorted(run.evaluations.items()):
            if evaluation is run.final or step == 0 or (not run.finished and step == max(run.evaluations)):
                when = "before training" if step == 0 else f"after step {step} of {config.run.steps}"
                whose = f"{config.run.name}, {when}"
                yield whose, evaluation, limit or config.rollout.max_response_tokens, config.rollout.temperature
