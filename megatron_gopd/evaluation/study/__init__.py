"""The report on runs and evaluations: what they did, and what they say of the paper's claims. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.study import glance
from megatron_gopd.evaluation.study.page import PAGE, TEXT, Report
from megatron_gopd.evaluation.study.settings import Study
from megatron_gopd.evaluation.study.verdicts import Finding
from megatron_gopd.runs import atomic_folder, print_table
from megatron_gopd.terminal import say


def report(paths: Sequence[Path], output: Path) -> list[Finding]:
    """Write the report on the runs and evaluations in `paths` to the folder `output`, which a report may be in already.

    Returns:
        what the runs say of each of the paper's claims.

    Raises:
        UserError: a path that holds no run and no evaluation, a damaged file, an output that holds something else.
    """
    _refuse_other_things(output)
    study = Study(paths)
    whole = Report.on(study)
    with atomic_folder(output) as folder:
        whole.write(folder)
    if numbers := glance.number_rows(study):
        print_table("First and last steps of these runs", numbers[0], numbers[1:])
    if whole.told:
        told = [(finding.claim.text, finding.verdict) for finding in whole.told]
        print_table("Claims, asked of these runs", ["claim", ""], told)
    say(f"{whole.summary}\n{output / PAGE}, {output / TEXT}")
    return whole.findings


def _refuse_other_things(output: Path) -> None:
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / PAGE).exists()):
        raise UserError(f"--output {output} holds something else than a report; name a new or an empty folder")
