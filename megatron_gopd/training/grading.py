"""Outcome rewards of a batch, on rank 0."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.data.rows import errors_at
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.ranks import is_first
from megatron_gopd.rewards import GraderPool, check_sandbox, parse_tests


def check_rewards(config: Config, prompts: list[Prompt]) -> None:
    """Raises UserError, before any work is done: a row without tests that needs some, tests that cannot be read, a
    machine that cannot run programs safely.
    """
    asked = [prompt for prompt in prompts if grader_of(config.rewards, prompt) == "code"]
    for prompt in asked:
        with errors_at(prompt.source):
            if prompt.tests is None:
                raise UserError("no tests, and rewards: code; add a column `tests`, or set rewards: auto")
            parse_tests(prompt.tests)
    if asked:
        check_sandbox(config.sandbox)


def grader_of(rewards: str, prompt: Prompt) -> str | None:
    """Which grader the setting `rewards` means for this prompt; None where it is not graded."""
    if rewards == "code" or (rewards == "auto" and prompt.tests is not None):
        return "code"
    if rewards == "none" or prompt.label is None:
        return None
    return "math" if rewards == "auto" else rewards


class Grader:
    """Fills in `reward` of every trajectory whose prompt has what its grader needs."""

    def __init__(self, config: Config):
        self._rewards = config.rewards
        kinds = {"none": [], "auto": ["math", "code"]}.get(config.rewards, [config.rewards])
        self._pools = {kind: GraderPool(kind, sandbox=config.sandbox) for kind in kinds} if is_first() else {}

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        for pool in self._pools.values():
            pool.close()

    def grade(self, batch: list[Trajectory], tokenizer) -> None:
        """Rewards on rank 0 only: they are metrics there."""
        for kind, pool in self._pools.items():
            rows = [trajectory for trajectory in batch if grader_of(self._rewards, trajectory.prompt) == kind]
            answers = [tokenizer.decode(row.response_tokens, skip_special_tokens=True) for row in rows]
            labels = [row.prompt.tests if kind == "code" else row.prompt.label for row in rows]
            for row, grade in zip(rows, pool.grade(answers, labels), strict=True):
                row.reward = grade.score
