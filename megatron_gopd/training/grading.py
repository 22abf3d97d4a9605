"""Outcome rewards of a batch, known to every rank."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.objective import group_advantages
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.rewards import Graders


class Grader:
    """Fills in `reward` of every trajectory whose prompt has what its grader needs."""

    def __init__(self, config: Config):
        self._graders = Graders(config.rewards, config.sandbox) if is_first() else None

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        if self._graders:
            self._graders.close()

    def grade(self, batch: list[Trajectory], tokenizer) -> None:
        """Graded on rank 0. Collective."""

        def scores() -> list[float | None]:
            texts = [tokenizer.decode(each.response_tokens, skip_special_tokens=True) for each in batch]
            reasons = [each.finish_reason for each in batch]
            grades = self._graders.grade([each.prompt for each in batch], texts, reasons)
            return [grade and grade.score for grade in grades]

        for trajectory, reward in zip(batch, on_first(scores), strict=True):
            trajectory.reward = reward


def set_outcomes(batch: list[Trajectory], *, normalize_std: bool) -> None:
    """Fill in `outcome`, the advantage of every reward over the others to the same prompt."""
    rewards, prompts = [each.reward for each in batch], [each.prompt.id for each in batch]
    for trajectory, outcome in zip(batch, group_advantages(rewards, prompts, normalize_std=normalize_std), strict=True):
        trajectory.outcome = outcome
