"""What a grader says of a response."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """`score` in [0, 1], or any number by a function of the user's own.

    0 whenever there is a problem: "timeout", "crash: ...", "no label", "test 3: wrong answer".
    """

    score: float
    problem: str | None = None
