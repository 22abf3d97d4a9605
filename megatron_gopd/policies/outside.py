"""Scorers that are not in this job's models: servers, or code of the user's own, under one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_gopd.config import schema
from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.ranks import on_first


class OutsideScorer(Protocol):
    """What a job asks instead of a model of its own. Every method is collective."""

    def start(self, logs: Path) -> None:
        """Before the first score; what it logs goes to the folder `logs`."""

    def ask(self, rows: Sequence[Row], names: Sequence[str]) -> Callable[[], list[np.ndarray]]:
        """Ask for the log-prob of every response token of each row; what is returned waits for them, and is collective,
        too: [response] float32 a row, nats. `names`: of the rows, in messages."""

    def close(self) -> None:
        """End whatever was started."""


class TheirScorer(Protocol):
    """FILE.py:CLASS of the user's own, on rank 0 alone; made with (settings, who, temperature): the section of the
    teacher or reference, its key for messages, and the temperature of the softmax."""

    def start(self, logs: Path) -> None:
        """Before the first score; what it logs goes to the folder `logs`."""

    def score(self, rows: list[Row]) -> list[np.ndarray]:
        """Log-prob of every response token of each row: [response] float32, nats."""

    def close(self) -> None:
        """End whatever was started."""


class OwnScorer:
    """FILE.py:CLASS on rank 0; every rank gets its answers. Every method is collective."""

    def __init__(self, code: OwnCode, settings: schema.Scorer, who: str, temperature: float):
        """Raises UserError, with the line: the file cannot be loaded, or the class not be made."""
        self._code, self._who = code, who
        self._theirs: TheirScorer | None = None
        on_first(lambda: self._make(settings, temperature))

    def start(self, logs: Path) -> None:
        on_first(lambda: self._asked(self._theirs.start, logs))

    def ask(self, rows: Sequence[Row], names: Sequence[str]) -> Callable[[], list[np.ndarray]]:
        """Their class answers at once: it need not be fit for threads.

        Raises UserError: the class fails, or answers with other than one log-prob a response token.
        """
        answers = on_first(lambda: self._score(list(rows), names))
        return lambda: answers

    def close(self) -> None:
        if self._theirs is not None:
            self._theirs.close()

    def _make(self, settings: schema.Scorer, temperature: float) -> None:
        self._theirs = self._asked(self._code.load(), settings, self._who, temperature)

    def _score(self, rows: list[Row], names: Sequence[str]) -> list[np.ndarray]:
        answers = [np.asarray(answer, dtype=np.float32) for answer in self._asked(self._theirs.score, rows)]
        asked = f"{self._who}.engine: {self._code}: score must give each of the {len(rows)} rows [response] log-probs"
        if len(answers) != len(rows):
            raise UserError(f"{asked}, and gave {len(answers)}")
        for answer, row, name in zip(answers, rows, names, strict=True):
            if answer.shape != (len(row.response_tokens),):
                raise UserError(f"{asked}: {name} has {len(row.response_tokens)} tokens, and got {[*answer.shape]}")
        return answers

    def _asked(self, function, *args):
        with self._code.errors(f"{self._who}.engine: "):
            return function(*args)
