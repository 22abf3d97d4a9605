"""The table, its JSON and the line that sums up."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from scripts.gpu.checks.result import Check

HOLDS = {True: "yes", False: "NO", None: "skipped"}
WIDTH = 90  # of a figure; a longer one, such as an error, is cut here and whole in the JSON


def table(checks: Sequence[Check]) -> str:
    """`check | figure | bound | holds`, a row a check."""
    rows = [("check", "figure", "bound", "holds")]
    rows += [(f"{c.section}: {c.name}", textwrap.shorten(c.figure, WIDTH), c.bound, _holds(c)) for c in checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _holds(check: Check) -> str:
    """Of a figure of which nothing is asked: nothing."""
    told = check.holds is None and not check.bound and not check.figure.startswith("skipped")
    return "" if told else HOLDS[check.holds]


def counts(checks: Sequence[Check]) -> dict[str, int]:
    found = [check.holds for check in checks]
    return {"hold": found.count(True), "fail": found.count(False), "skipped": found.count(None)}


def summary(checks: Sequence[Check]) -> str:
    told = ", ".join(f"{count} {what}" for what, count in counts(checks).items())
    return f"gpu-check: {len(checks)} checks: {told}"


def write_json(path: Path, checks: Sequence[Check], about: dict) -> None:
    """`about`: of the machine and the time, beside the checks."""
    rows = [{"section": c.section, "check": c.name, **_of(c)} for c in checks]
    path.write_text(json.dumps({**about, **counts(checks), "checks": rows}, indent=1) + "\n")


def _of(check: Check) -> dict:
    return {"figure": check.figure, "bound": check.bound, "holds": check.holds}
