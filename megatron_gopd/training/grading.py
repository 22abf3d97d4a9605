"""Outcome rewards of a batch, known to every rank."""

from __future__ import annotations

from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.objective import group_advantages
from megatron_gopd.rewards import Grade


def set_rewards(batch: list[Trajectory], grades: list[Grade | None]) -> None:
    """Fill in `reward`; it stays None where nothing grades the prompt."""
    for trajectory, grade in zip(batch, grades, strict=True):
        trajectory.reward = grade and grade.score


def set_outcomes(batch: list[Trajectory], *, normalize_std: bool) -> None:
    """Fill in `outcome`, the advantage of every reward over the others to the same prompt."""
    rewards, prompts = [each.reward for each in batch], [each.prompt.id for each in batch]
    for trajectory, outcome in zip(batch, group_advantages(rewards, prompts, normalize_std=normalize_std), strict=True):
        trajectory.outcome = outcome
