"""The paper's tables in form: methods by benchmark, each beside what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from megatron_gopd.evaluation.study.models import Subject
from megatron_gopd.evaluation.study.scores import Measured
from megatron_gopd.evaluation.study.settings import Domain, Setting, Study
from megatron_gopd.evaluation.study.variants import Variant, apart

Base = Callable[[Domain, Variant], Subject | None]  # what a row's figures are compared with


@dataclass(frozen=True)
class Cell:
    """accuracy, and its difference from what the table compares with; None where it was not measured."""

    value: Measured | None = None
    difference: Measured | None = None


@dataclass(frozen=True)
class Row:
    label: str
    cells: list[Cell]
    note: str = ""


@dataclass
class Table:
    """`groups`: (heading, its columns), the last of several columns being their mean. Rows stand in sections."""

    title: str
    compared_with: str
    groups: list[tuple[str, list[str]]]
    sections: list[tuple[str, list[Row]]] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return [name for _, names in self.groups for name in names]


def tables(study: Study) -> list[Table]:
    """Table 2 for every student with teachers of its size, Table 3 for every set of larger ones; no empty ones."""
    return [table for table in (*_same_size(study), *_strong_to_weak(study)) if _measured(table)]


def _measured(table: Table) -> bool:
    return any(cell.value for _, rows in table.sections for row in rows for cell in row.cells)


def _same_size(study: Study) -> Iterator[Table]:
    shown: set[int] = set()
    same = [setting for setting in study.settings if not setting.strong]
    for widest in sorted(same, key=lambda setting: -len(setting.teachers)):
        if id(widest) in shown:
            continue
        parts = [each for each in same if each.student == widest.student and _within(each, widest)]
        shown |= set(map(id, parts))
        table = _table(f"{widest.title}: teachers of the student's size (Table 2)", "the teacher", widest.domains)
        teachers = [(domain, study.teacher(domain)) for domain in widest.domains]
        student = [(domain, study.student(widest)) for domain in widest.domains]
        further = [_further(widest.domains, teachers, each) for each in study.variants if each.method.kind == "grpo"]
        rows = [_row("Teacher", teachers), *filter(None, further), _row("Student before training", student)]
        table.sections.append(("", rows))
        for name, several in (("Single-teacher distillation", False), ("Multi-teacher distillation", True)):
            rows = _rows(
                [each for each in parts if each.multi == several],
                widest.domains,
                lambda domain, _: study.teacher(domain),
            )
            if rows:
                table.sections.append((name, rows))
        yield table


def _strong_to_weak(study: Study) -> Iterator[Table]:
    groups: dict[tuple, list[Setting]] = {}
    for setting in study.settings:
        if setting.strong:
            groups.setdefault(tuple(sorted(setting.teachers.values())), []).append(setting)
    for settings in groups.values():
        first = settings[0]
        table = _table(f"Larger teacher: {' + '.join(first.teachers)} (Table 3)", "OPD", first.domains)
        table.sections.append(("", [_row("Teacher", [(each, study.teacher(each)) for each in first.domains])]))
        for setting in settings:
            before = _row("Before training", [(domain, study.student(setting)) for domain in first.domains])
            rows = [
                before,
                *_rows([setting], first.domains, lambda _, variant, setting=setting: _opd(setting, variant)),
            ]
            table.sections.append((f"Student: {study.models.name(setting.student)}", rows))
        yield table


def _rows(settings: list[Setting], domains: list[Domain], base: Base) -> list[Row]:
    """A row for each method; of single-teacher settings each gives the columns of its own teacher."""
    rows: dict[str, dict[Domain, Variant]] = {}
    for setting in settings:
        mine = [domain for domain in domains if setting.multi or domain.teacher in setting.teachers.values()]
        for variant, label in _labelled(setting.variants):
            rows.setdefault(label, {}).update(dict.fromkeys(mine, variant))
    found = []
    for label, variants in rows.items():
        subjects = [(domain, variants[domain].subject if domain in variants else None) for domain in domains]
        others = {domain: base(domain, variant) for domain, variant in variants.items()}
        found.append(_row(label, subjects, others, _note(variants.values())))
    return found


def _labelled(variants: Iterable[Variant]) -> Iterator[tuple[Variant, str]]:
    """With the steps, and with what else tells two of a kind apart."""
    alike: dict[tuple, list[Variant]] = {}
    for variant in variants:
        if variant.method.kind != "grpo":
            alike.setdefault((variant.method, variant.steps), []).append(variant)
    for (method, steps), group in alike.items():
        for variant, detail in zip(group, apart(group), strict=True):
            parts = [str(method), f"{steps} steps" if steps else "", detail]
            yield variant, ", ".join(filter(None, parts))


def _note(variants: Iterable[Variant]) -> str:
    """What is not there yet, so that nothing unfinished looks complete."""
    runs = {run.path: run for variant in variants for run in variant.runs}.values()
    left = [f"{run.config.run.name}: {run.done} of {run.config.run.steps} steps" for run in runs if not run.finished]
    silent = [f"{run.config.run.name}: no evaluation of benchmarks" for run in runs if run.finished and not run.final]
    return "; ".join(left + silent)


def _table(title: str, compared_with: str, domains: list[Domain]) -> Table:
    groups = [(d.name, [*d.suites, *(["mean"] if len(d.suites) > 1 else [])]) for d in domains if d.suites]
    return Table(title, compared_with, groups)


def _row(
    label: str,
    subjects: list[tuple[Domain, Subject | None]],
    base: dict[Domain, Subject | None] | None = None,
    note: str = "",
) -> Row:
    cells = []
    for domain, subject in subjects:
        columns = [[suite] for suite in domain.suites] + ([list(domain.suites)] if len(domain.suites) > 1 else [])
        other = (base or {}).get(domain)
        for suites in columns:
            value = subject and subject.measured(suites)
            difference = subject.minus(other, suites) if subject and subject is not other else None
            cells.append(Cell(value, difference))
    missing = "" if any(cell.value for cell in cells) or note else "no evaluation"
    return Row(label, cells, note or missing)


def _further(domains: list[Domain], teachers: list[tuple[Domain, Subject | None]], variant: Variant) -> Row | None:
    """A teacher that was trained further (Table 1)."""
    mine = {domain: teacher for domain, teacher in teachers if domain.teacher == variant.student}
    subjects = [(domain, variant.subject if domain in mine else None) for domain in domains]
    label = f"+ continued RL, {variant.steps} steps"
    return _row(label, subjects, mine, _note([variant])) if mine else None


def _opd(setting: Setting, variant: Variant) -> Subject | None:
    """Of the same recipe; for a baseline, of as many steps."""
    found = [each for each in setting.variants if each.method.kind == "gopd" and each.method.strength == 1]
    same = [each for each in found if each.recipe == variant.recipe]
    return next((each.subject for each in (same or found) if each.steps == variant.steps), None)


def _within(setting: Setting, wide: Setting) -> bool:
    return set(setting.teachers.values()) <= set(wide.teachers.values())
