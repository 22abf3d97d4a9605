"""What is compared with what: students with the teachers they learn from, and the benchmarks of each teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from megatron_gopd.evaluation.study.folders import Evaluation, Run, read_folders
from megatron_gopd.evaluation.study.models import Models, Subject
from megatron_gopd.evaluation.study.variants import GRADIENT, Variant, apart, variants_of


@dataclass(frozen=True)
class Domain:
    """The benchmarks on which one teacher is the one to learn from."""

    name: str  # the teacher's
    teacher: Path | None  # None: benchmarks that no teacher here has answered
    suites: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """One student before training, one set of teachers, and all that was done with them."""

    student: Path
    teachers: dict[str, Path]
    variants: list[Variant] = field(repr=False)
    strong: bool | None  # a teacher of another size than the student; None: a config.json is missing
    title: str
    domains: list[Domain] = field(default_factory=list)

    @property
    def multi(self) -> bool:
        return len(self.teachers) > 1

    def recipes(self) -> list[list[Variant]]:
        """The distillations, those of one recipe together, the smallest lambda first."""
        groups: dict[str, list[Variant]] = {}
        for variant in self.variants:
            if variant.method.kind == "gopd":
                groups.setdefault(repr(sorted(variant.recipe.items())), []).append(variant)
        return [sorted(group, key=lambda variant: variant.method.place) for group in groups.values()]


def told(setting: Setting, recipe: list[Variant]) -> str:
    """How long a recipe was trained, and what tells it from the setting's others."""
    recipes = setting.recipes()
    details = apart([each[0] for each in recipes], but=("run.steps", GRADIENT, "algorithm.divergence"))
    detail = next(detail for each, detail in zip(recipes, details, strict=True) if each[0] is recipe[0])
    return ", ".join(filter(None, [recipe[0].budget, detail]))


class Study:
    """All runs and evaluations at hand, and the settings they form."""

    def __init__(self, paths: Iterable[Path]):
        """Raises UserError as read_folders does."""
        self.runs: list[Run]
        self.evaluations: list[Evaluation]
        self.runs, self.evaluations = read_folders(paths)
        self.models = Models(self.runs, self.evaluations)
        self.variants = sorted(variants_of(self.runs, self.models), key=lambda variant: variant.method.place)
        self.settings = self._settings()
        self._give_domains()

    def teacher(self, domain: Domain) -> Subject | None:
        return domain.teacher and self.models.subject(domain.teacher, f"teacher {domain.name}")

    def student(self, setting: Setting) -> Subject:
        return self.models.subject(setting.student, "student before training")

    def _settings(self) -> list[Setting]:
        groups: dict[tuple, list[Variant]] = {}
        for variant in self.variants:
            if variant.teachers:
                key = variant.student, tuple(sorted(variant.teachers.values()))
                groups.setdefault(key, []).append(variant)
        return [self._setting(student, variants) for (student, _), variants in groups.items()]

    def _setting(self, student: Path, variants: list[Variant]) -> Setting:
        named = next((each for each in variants if each.runs), variants[0])  # a merged model's teachers have no names
        shapes = [self.models.shape(model) for model in (student, *named.teachers.values())]
        strong = None if None in shapes else any(shape != shapes[0] for shape in shapes[1:])
        title = f"{self.models.name(student)} ← {' + '.join(named.teachers)}"
        return Setting(student, named.teachers, variants, strong, title)

    def _give_domains(self) -> None:
        """Of several teachers, a benchmark belongs to the one that answers it best; a teacher alone keeps its own."""
        for setting in sorted(self.settings, key=lambda setting: -len(setting.teachers)):
            asked = list(dict.fromkeys(name for each in setting.variants for name in each.subject.suites))
            asked = asked or self.student(setting).suites
            for name, teacher in setting.teachers.items():
                mine = tuple(suite for suite in asked if self._home(setting, suite) == teacher)
                setting.domains.append(Domain(name, teacher, mine))
            if stray := tuple(suite for suite in asked if setting.multi and not self._home(setting, suite)):
                setting.domains.append(Domain("no teacher measured", None, stray))

    def _home(self, setting: Setting, suite: str) -> Path | None:
        if not setting.multi:
            (teacher,) = setting.teachers.values()
            wider = [other for other in self.settings if other.multi and teacher in other.teachers.values()]
            homes = {self._home(other, suite) for other in wider} - {None}
            return teacher if not homes or teacher in homes else None
        measured = {teacher: self.models.subject(teacher).measured([suite]) for teacher in setting.teachers.values()}
        known = {teacher: found.mean for teacher, found in measured.items() if found}
        return max(known, key=known.get) if known else None
