"""A reward of the user's own: FILE.py:FUNCTION."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.errors import UserError
from megatron_gopd.rewards.grade import Grade


@dataclass(frozen=True)
class CustomReward:
    """`function(response, label, **row) -> float` of a file; row: what rewards.grading passes."""

    code: OwnCode

    @classmethod
    def parse(cls, text: str) -> CustomReward | None:
        """None where `text` is the name of one of our graders."""
        code = OwnCode.parse(text)
        return code and cls(code)

    def load(self) -> Callable[..., float]:
        """Raises UserError: no such file or function, or an error while it is imported."""
        try:
            return self.code.load()
        except UserError as error:
            raise UserError(f"rewards: {error}") from error

    def __call__(self, response: str, label: str | None, **row) -> Grade:
        """Raises what `load` raises; UserError, with its line: the function raises, or returns no finite number."""
        function = self.load()
        with self.code.errors():
            score = function(response, label, **row)
        if not _finite(score):
            raise UserError(
                f"{self.code.place_of(function)}: {self.code.name} returned {score!r}; a finite number is expected"
            )
        return Grade(float(score))


def _finite(score: object) -> bool:
    try:
        return not isinstance(score, str) and math.isfinite(score)
    except TypeError:
        return False
