"""What any runs amount to on benchmarks: accuracy, paired with that before training, and with the first run's."""

from __future__ import annotations

from collections.abc import Callable

from megatron_gopd.evaluation.study.folders import Run
from megatron_gopd.evaluation.study.models import Subject
from megatron_gopd.evaluation.study.settings import Study
from megatron_gopd.evaluation.study.tables import Cell, Row, Table


def results(study: Study) -> list[Table]:
    """One table for what training did, and one beside the first run where there are several; no run, no table."""
    runs = [run for run in study.runs if run.final]
    if not runs:
        return []
    found = [_table("Results", "the student before training", runs, lambda run: _before(study, run))]
    if len(runs) > 1:
        first = _after(runs[0])
        title = f"Results beside {first.label}"
        found.append(_table(title, first.label, runs, lambda run: None if run is runs[0] else first))
    return [table for table in found if any(cell.difference for row in table.sections[0][1] for cell in row.cells)] or (
        found[:1]
    )


def _table(title: str, compared_with: str, runs: list[Run], other: Callable[[Run], Subject | None]) -> Table:
    suites = list(dict.fromkeys(name for run in runs for name in run.final.suites))
    rows = []
    for run in runs:
        subject, beside = _after(run), other(run)
        cells = [Cell(subject.measured([name]), subject.minus(beside, [name])) for name in suites]
        rows.append(Row(run.config.run.name, cells))
    return Table(title, compared_with, [("", suites)], [("", rows)])


def _after(run: Run) -> Subject:
    return Subject(run.config.run.name, {None: run.final})


def _before(study: Study, run: Run) -> Subject:
    """By the run itself, else by whoever measured that model."""
    own = run.evaluations.get(0)
    return Subject("before", {None: own}) if own else study.models.subject(run.student)
