"""What the study consists of: runs, merged models, exact targets, and which of them need which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
DATA = Path("assets/miniature")
SHIPPED = HERE.relative_to(Path.cwd()) / "models" if HERE.is_relative_to(Path.cwd()) else HERE / "models"
DOMAINS = ("math", "code")
GRID = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3)
SEEDS = (0, 1, 2)


def held_out(domain: str) -> Path:
    """The problems on which students are judged."""
    return DATA / f"{domain}_held_out.jsonl"


@dataclass(frozen=True)
class Stage:
    """Something that is made once; its folder is runs/name."""

    name: str
    runs: Path
    needs: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def done(self) -> bool:
        return (self.folder / "summary.json").exists()


@dataclass(frozen=True)
class Train(Stage):
    """An ordinary run: one of the YAML files beside this one, with overrides."""

    config: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return (self.folder / "model").exists()


@dataclass(frozen=True)
class Evaluate(Stage):
    """A model that no run here has made, asked on both tasks."""

    model: Path = Path()
    domains: tuple[str, ...] = DOMAINS


@dataclass(frozen=True)
class Merge(Evaluate):
    """ExPO: the mean of the teachers, extrapolated from the base; then as Evaluate."""

    teachers: tuple[Path, ...] = ()
    base: Path = Path()
    alpha: float = 0.0


@dataclass(frozen=True)
class Target(Stage):
    """Answers from the exact per-prefix law of a lambda."""

    teacher: Path = Path()
    reference: Path = Path()
    lambda_: float = 1.0
    domain: str = ""


@dataclass(frozen=True)
class Models:
    """Where base and teachers lie, the stages that make them, and the folder of what is made of them."""

    runs: Path
    base: Path
    math: Path
    code: Path
    made_by: dict[str, str] = field(default_factory=dict)

    def needs(self, *names: str) -> tuple[str, ...]:
        return tuple(self.made_by[name] for name in names if name in self.made_by)

    def of(self, name: str) -> Path:
        return getattr(self, name)


RUNS = Path("runs/miniature")
NAMES = ("base", *DOMAINS)
TRAINED = Models(RUNS, *(RUNS / name / "model" for name in NAMES), {name: name for name in NAMES})
GIVEN = Models(Path("runs/miniature-quick"), *(SHIPPED / name for name in NAMES))


def quick() -> list[Stage]:
    """From the shipped models, one seed: the curve over lambda on one task, and Table 2 with both teachers."""
    stages: list[Stage] = [Evaluate(name, GIVEN.runs, model=GIVEN.of(name)) for name in NAMES]
    stages += [multi(GIVEN, lambda_, 150) for lambda_ in (1, 1.25)]
    stages += [multi_sft(GIVEN, 150), *(expo(GIVEN, DOMAINS, alpha) for alpha in (0.25, 0.5))]
    stages += [single(GIVEN, "math", lambda_, 50) for lambda_ in (0.25, 0.5, 0.75, 1, 1.25, 3)]
    return stages + [target(GIVEN, "math", lambda_) for lambda_ in (0.25, 0.5, 0.75, 1, 1.25, 3)]


def full() -> list[Stage]:
    """From nothing. Long stages come first: two workers then end at about the same time."""
    stages = list(beginnings())
    stages += [multi(TRAINED, lambda_, 150, seed) for lambda_ in (1, 1.25) for seed in SEEDS]
    stages += [strong_to_weak(kind, steps) for steps in (150, 50) for kind in ("sft", "opd", "exopd", "corrected")]
    stages += [single(TRAINED, d, lambda_, 150, seed) for d in DOMAINS for lambda_ in (1, 1.25) for seed in SEEDS]
    stages += [multi_sft(TRAINED, steps) for steps in (150, 50)]
    stages += [multi(TRAINED, lambda_, 50, seed) for lambda_ in (1, 1.25) for seed in SEEDS]
    stages += [single(TRAINED, domain, lambda_, 50) for domain in DOMAINS for lambda_ in GRID]
    stages += [single(TRAINED, d, lambda_, 50, seed) for d in DOMAINS for lambda_ in (1, 1.25) for seed in SEEDS[1:]]
    stages += [target(TRAINED, domain, lambda_) for domain in DOMAINS for lambda_ in GRID]
    return stages + [expo(TRAINED, which, alpha) for which in (DOMAINS, *zip(DOMAINS)) for alpha in (0.25, 0.5)]


def beginnings() -> Iterator[Stage]:
    """The base model, its two teachers, those trained twice as long, and a smaller base."""
    yield Train("base", RUNS, config="base.yaml")
    yield Train(
        "weak-base", RUNS, config="base.yaml", overrides=("run.name=weak-base", f"student.model={DATA}/untrained-weak")
    )
    for domain, steps in (("math", 40), ("code", 25)):
        yield grpo(domain, domain, "base", steps)
        yield grpo(f"{domain}-further", domain, domain, steps)


def grpo(name: str, domain: str, start: str, steps: int) -> Train:
    overrides = (
        f"run.name={name} run.steps={steps} student.model={RUNS}/{start}/model data.train={DATA}/{domain}_train.jsonl"
    )
    return Train(name, RUNS, needs=(start,), config="grpo.yaml", overrides=tuple(overrides.split()))


def single(models: Models, domain: str, lambda_: float, steps: int, seed: int = 0, gradient: str = "sampled") -> Train:
    """G-OPD from one teacher into the base."""
    name = f"{_with(domain, gradient)}-lambda-{lambda_:g}"
    return Train(
        f"{name}-steps-{steps}-seed-{seed}",
        models.runs,
        needs=models.needs("base", domain),
        config="single.yaml",
        overrides=(
            *_named(models, name, steps, seed),
            f"student.model={models.base}",
            f"teachers={{{domain}: {{model: {models.of(domain)}, dtype: float32}}}}",
            f"algorithm.lambda={lambda_}",
            f"algorithm.gradient={gradient}",
            f"data.train={DATA}/{domain}_train.jsonl",
            f"evaluation.suites=[{held_out(domain)}]",
        ),
    )


def multi(models: Models, lambda_: float, steps: int, seed: int = 0, gradient: str = "sampled") -> Train:
    """G-OPD from both teachers into the base."""
    more = f"algorithm.lambda={lambda_}", f"algorithm.gradient={gradient}"
    return _of_both(models, "multi.yaml", f"{_with('multi', gradient)}-lambda-{lambda_:g}", steps, seed, *more)


def multi_sft(models: Models, steps: int) -> Train:
    return _of_both(models, "sft.yaml", "multi-sft", steps, 0)


def strong_to_weak(kind: str, steps: int) -> Train:
    """Both teachers into a base smaller than theirs; corrected: the reference is their own base, not the student."""
    more = {
        "sft": (),
        "opd": ("algorithm.lambda=1",),
        "exopd": ("algorithm.lambda=1.25",),
        "corrected": ("algorithm.lambda=1.25", f"algorithm.reference={{model: {TRAINED.base}, dtype: float32}}"),
    }[kind]
    stage = _of_both(TRAINED, "sft.yaml" if kind == "sft" else "multi.yaml", f"weak-{kind}", steps, 0, *more)
    overrides = tuple(each for each in stage.overrides if not each.startswith("student.model="))
    overrides += (f"student.model={RUNS}/weak-base/model",)
    return replace(stage, needs=(*stage.needs, "weak-base"), overrides=overrides)


def expo(models: Models, domains: tuple[str, ...], alpha: float) -> Merge:
    name = f"{'multi' if len(domains) > 1 else domains[0]}-expo-{alpha:g}"
    return Merge(
        name,
        models.runs,
        needs=models.needs("base", *domains),
        model=models.runs / "models" / name,
        teachers=tuple(map(models.of, domains)),
        base=models.base,
        alpha=alpha,
    )


def target(models: Models, domain: str, lambda_: float) -> Target:
    return Target(
        f"{domain}-target-{lambda_:g}",
        models.runs,
        needs=models.needs("base", domain),
        teacher=models.of(domain),
        reference=models.base,
        lambda_=lambda_,
        domain=domain,
    )


def _of_both(models: Models, config: str, name: str, steps: int, seed: int, *more: str) -> Train:
    return Train(
        f"{name}-steps-{steps}-seed-{seed}",
        models.runs,
        needs=models.needs("base", *DOMAINS),
        config=config,
        overrides=(
            *_named(models, name, steps, seed),
            f"student.model={models.base}",
            *(f"teachers.{domain}.model={models.of(domain)}" for domain in DOMAINS),
            *more,
        ),
    )


def _with(name: str, gradient: str) -> str:
    return name if gradient == "sampled" else f"{name}-{gradient}"


def _named(models: Models, name: str, steps: int, seed: int) -> tuple[str, ...]:
    of_run = {"name": f"{name}-steps-{steps}-seed-{seed}", "folder": models.runs, "steps": steps, "seed": seed}
    return tuple(f"run.{key}={value}" for key, value in of_run.items())
