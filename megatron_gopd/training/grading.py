"""Outcome rewards of a batch, on rank 0."""

from __future__ import annotations

from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.ranks import is_first
from megatron_gopd.rewards import GraderPool


class Grader:
    """Fills in `reward` where a prompt has a label; `kind` "none" grades nothing."""

    def __init__(self, kind: str):
        self._pool = GraderPool(kind) if kind != "none" and is_first() else None

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        if self._pool:
            self._pool.close()

    def grade(self, batch: list[Trajectory], tokenizer) -> None:
        """Rewards on rank 0 only: they are metrics there."""
        labelled = [trajectory for trajectory in batch if trajectory.prompt.label is not None]
        if self._pool is None or not labelled:
            return
        answers = [tokenizer.decode(trajectory.response_tokens, skip_special_tokens=True) for trajectory in labelled]
        grades = self._pool.grade(answers, [trajectory.prompt.label for trajectory in labelled])
        for trajectory, grade in zip(labelled, grades, strict=True):
            trajectory.reward = grade.score
