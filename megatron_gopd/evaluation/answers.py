"""Graded answers in a file that grows while an evaluation runs, and from which an interrupted one goes on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.runs import write_text


@dataclass(frozen=True)
class Answer:
    id: str
    sample: int
    response: str
    tokens: int
    score: float
    problem: str | None  # why it could not be graded, or which test failed
    finish_reason: str


class Answers:
    """The answers of one suite: `samples` to each problem, whole problems only when it is opened."""

    def __init__(self, path: Path, samples: int):
        """Read what there is, without a problem that was interrupted. Raises UserError: the file is something else."""
        self._path, self._samples = path, samples
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        self.rows = self._whole(lines)
        if len(lines) > len(self.rows) + 1 or (lines and lines[-1]):
            write_text(path, "".join(map(_line, self.rows)))

    @property
    def done(self) -> set[str]:
        """Ids of the problems that have all of their answers."""
        return {row.id for row in self.rows}

    def add(self, rows: list[Answer]) -> None:
        """Write answers behind the others; they are on the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows

    def _whole(self, lines: list[str]) -> list[Answer]:
        rows = parse_answers(self._path, lines)
        count: dict[str, int] = {}
        for row in rows:
            count[row.id] = count.get(row.id, 0) + 1
        return [row for row in rows if count[row.id] == self._samples]


def parse_answers(path: Path, lines: list[str]) -> list[Answer]:
    """The answers in the lines of a file, the last of which is empty or was cut off. Raises UserError at any other."""
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(Answer(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not an answer of an evaluation: {error}") from None
    return rows


def _line(row: Answer) -> str:
    return json.dumps(asdict(row), ensure_ascii=False) + "\n"
