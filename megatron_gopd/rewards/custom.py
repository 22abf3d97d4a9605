"""A reward of the user's own: FILE.py:FUNCTION."""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.rewards.grade import Grade


@dataclass(frozen=True)
class CustomReward:
    """`function(response, label, **row) -> float` of a file; row: what rewards.grading passes."""

    file: str
    function: str

    @classmethod
    def parse(cls, text: str) -> CustomReward | None:
        """None where `text` is the name of one of our graders."""
        file, colon, function = text.rpartition(":")
        return cls(file, function) if colon and file.endswith(".py") else None

    def load(self) -> Callable[..., float]:
        """Raises UserError: no such file or function, or an error while it is imported."""
        return _load(self.file, self.function)

    def __call__(self, response: str, label: str | None, **row) -> Grade:
        """Raises what the function raises, and TypeError for what is no finite number."""
        score = self.load()(response, label, **row)
        if isinstance(score, str) or not math.isfinite(score):
            raise TypeError(f"{self.function} returned {score!r}; a finite number is expected")
        return Grade(float(score))


@functools.cache
def _load(file: str, function: str) -> Callable[..., float]:
    path = Path(file).absolute()
    if not path.is_file():
        raise UserError(f"rewards: {file}: no such file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import its neighbours; at the end: it hides no package
    spec = importlib.util.spec_from_file_location(f"_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"rewards: {file} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, function, None)):
        raise UserError(f"rewards: {file} defines no function {function}")
    return getattr(module, function)
