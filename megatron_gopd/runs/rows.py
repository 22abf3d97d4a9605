"""The rows that a run adds to its files one line at a time, read again: metrics.jsonl, samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MOST = 1e300  # of a metric: what is drawn or summed of more, is not a number


class Metrics(NamedTuple):
    rows: list[dict[str, float]]  # in the order of steps
    unreadable: int  # lines


def read_lines(file: Path) -> Iterator[tuple[str, dict | None]]:
    """Each line, and its row; None: it has no step, was cut short by the end of its process, or was damaged since.

    Raises OSError: there is no such file, or it cannot be read.
    """
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            yield line, _row(line)


def read_metrics(file: Path) -> Metrics:
    """The numbers of every step, of one that is there twice those that came later; nothing without a file.

    Raises OSError: it cannot be read.
    """
    rows, unreadable = {}, 0
    for _, row in read_lines(file) if file.exists() else ():
        if row is None:
            unreadable += 1
        else:
            rows[row["step"]] = {name: value for name, value in row.items() if _is_number(value)}
    return Metrics([rows[step] for step in sorted(rows)], unreadable)


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < MOST
