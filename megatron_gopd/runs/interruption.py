"""Whether what this process waits for is to be given up: asked by whoever waits, answered by whoever knows, handed
through nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_answers: list[Callable[[], None]] = []


def look() -> None:
    """Raises what whoever knows raises, where it is to be given up."""
    for answer in _answers:
        answer()


@contextlib.contextmanager
def known_by(answer: Callable[[], None]) -> Iterator[None]:
    """Within the block, `answer` raises where what is under way is to be given up."""
    _answers.append(answer)
    try:
        yield
    finally:
        _answers.remove(answer)
