"""Both gradients from the shipped models, and beside them a control that asks no teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from stages import DOMAINS, GIVEN, NAMES, SEEDS, Evaluate, Stage, Train, multi, single, target

MODELS = replace(GIVEN, runs=Path("runs/miniature-exact"))
# a report does not look there: by its configuration a control would be a distillation
CONTROLS = replace(MODELS, runs=MODELS.runs / ".controls")
GRADIENTS = ("sampled", "exact")
# the most telling first, since what is there can be reported at any time: (teachers, steps, lambdas; none: the control)
ORDER = (
    (DOMAINS, 50, (1.25, 1)),
    (DOMAINS, 50, ()),
    (("math",), 50, (1.25, 1)),
    (("math",), 50, ()),
    (DOMAINS, 150, (1.25, 1)),
    (DOMAINS, 150, ()),
    (DOMAINS, 50, (2,)),
    (("math",), 50, (2,)),
    (("math",), 150, (1.25, 1)),
    (("math",), 150, ()),
    (DOMAINS, 150, (2,)),
    (("math",), 150, (2,)),
)


@dataclass(frozen=True)
class Distance(Stage):
    """How far a run's student is from the exact target, prefix by prefix of its own answers."""

    student: Path = Path()
    teacher: Path = Path()
    reference: Path = Path()
    lambda_: float = 1.0
    domain: str = ""
    answers: Path = Path()

    @property
    def done(self) -> bool:
        return self.answers.with_suffix(".target_kl.json").exists()


@dataclass(frozen=True)
class Control(Evaluate):
    """A student of the same steps and batches that no teacher told anything; `run` makes it."""

    run: Train | None = None


def exact() -> list[Stage]:
    """Both gradients in turns, so that two workers have a pair in hand at the same time, under the same load."""
    stages: list[Stage] = [Evaluate(name, MODELS.runs, model=MODELS.of(name)) for name in NAMES]
    stages += [target(MODELS, domain, lambda_) for domain in DOMAINS for lambda_ in (1, 1.25, 2)]
    for teachers, steps, lambdas in ORDER:
        for seed in SEEDS:
            stages += [] if lambdas else [control(teachers, steps, seed)]
            for lambda_ in lambdas:
                runs = [_run(teachers, lambda_, steps, seed, gradient) for gradient in GRADIENTS]
                stages += runs + [each for run in runs for each in distances(run, teachers, lambda_)]
    return stages


def control(teachers: tuple[str, ...], steps: int, seed: int) -> Control:
    run = _run(teachers, 1, steps, seed, models=CONTROLS)
    run = replace(run, overrides=(*run.overrides, "evaluation=null"))
    name = f"{'multi' if len(teachers) > 1 else teachers[0]}-control-steps-{steps}-seed-{seed}"
    return Control(name, MODELS.runs, model=run.folder / "model", domains=teachers, run=run)


def distances(run: Train, teachers: tuple[str, ...], lambda_: float) -> Iterator[Distance]:
    for domain in teachers:
        yield Distance(
            f"{run.name}-distance-{domain}",
            run.runs,
            needs=(run.name,),
            student=run.folder / "model",
            teacher=MODELS.of(domain),
            reference=MODELS.base,
            lambda_=lambda_,
            domain=domain,
            answers=run.folder / "evaluation" / "after" / f"{domain}_held_out.jsonl",
        )


def _run(teachers: tuple[str, ...], *asked, models=MODELS, **more) -> Train:
    return multi(models, *asked, **more) if len(teachers) > 1 else single(models, *teachers, *asked, **more)
