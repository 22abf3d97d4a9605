"""Which grader a response gets, and the pools of all that a setting `rewards` may ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Self

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.data.rows import errors_at
from megatron_gopd.data.trajectory import Prompt
from megatron_gopd.errors import UserError
from megatron_gopd.rewards.code import check_sandbox
from megatron_gopd.rewards.custom import CustomReward
from megatron_gopd.rewards.grade import Grade
from megatron_gopd.rewards.graders import GRADERS
from megatron_gopd.rewards.pool import CRASH, GraderPool
from megatron_gopd.rewards.sandbox import too_large
from megatron_gopd.rewards.tests import parse_tests

WAY_OUT = {
    "code": "no tests, and rewards: code; add a column `tests`, or set rewards: auto",
    "auto": "neither a label nor tests, so nothing grades it; add one of them",
}


def grader_of(rewards: str, prompt: Prompt) -> str | None:
    """Which grader the setting `rewards` means for this prompt; None where it is not graded."""
    if CustomReward.parse(rewards):
        return rewards
    if rewards == "code" or (rewards == "auto" and prompt.tests is not None):
        return "code"
    if rewards == "none" or prompt.label is None:
        return None
    return "math" if rewards == "auto" else rewards


def check_rows(rewards: str, prompts: Sequence[Prompt], sandbox: Sandbox, *, every: bool) -> Counter[str | None]:
    """How many prompts each grader gets, of grader_of.

    Raises UserError: a row that cannot be graded (any such, with `every`), or what check_gold refuses.
    """
    kinds = [grader_of(rewards, prompt) for prompt in prompts]
    for prompt, kind in zip(prompts, kinds, strict=True):
        with errors_at(prompt.source):
            if (kind == "code" and prompt.tests is None) or (every and kind is None):
                raise UserError(
                    WAY_OUT.get(rewards, f"no label, and rewards: {rewards}; add `label`, `answer` or `ground_truth`")
                )
            check_gold(kind, prompt, sandbox)
    return Counter(kinds)


def check_gold(kind: str | None, prompt: Prompt, sandbox: Sandbox) -> None:
    """Raises UserError: tests that cannot be read, that no sandbox of this size can hold, or several answers of which
    nothing says that each is right.
    """
    if kind == "code" and (problem := too_large(parse_tests(prompt.tests), sandbox)):
        raise UserError(f"tests: {problem}")
    if kind in GRADERS and prompt.golds and not prompt.any_of:
        raise UserError(
            f"the label is a list of {len(prompt.golds)} answers: {prompt.label[:80]}; give the one that is right, or, "
            f"where each is, name the column golden_answers"
        )


def check_machine(kinds: Collection[str | None], sandbox: Sandbox) -> None:
    """Raises UserError: this machine cannot run programs safely, or cannot load a function of the user's own, where
    `kinds`, of grader_of, ask for it.
    """
    for kind in kinds:
        if kind and (custom := CustomReward.parse(kind)):
            custom.load()
    if "code" in kinds:
        check_sandbox(sandbox)


class Graders:
    """A pool for each grader that `rewards` may ask for; their workers start when they are needed."""

    def __init__(self, rewards: str, sandbox: Sandbox, cores: frozenset[int] | None = None):
        self._rewards = rewards
        kinds = {"none": [], "auto": ["math", "code"]}.get(rewards, [rewards])
        self._pools = {kind: GraderPool(kind, sandbox=sandbox, cores=cores) for kind in kinds}

    def grade(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finish_reasons: Sequence[str]
    ) -> list[Grade | None]:
        """One Grade a response, None where nothing grades its prompt.

        Raises UserError: the user's own function failed, which is no fault of an answer.
        """
        grades: list[Grade | None] = [None] * len(prompts)
        for kind, pool in self._pools.items():
            asked = [
                (i, gold)
                for i, prompt in enumerate(prompts)
                if grader_of(self._rewards, prompt) == kind
                for gold in _golds(kind, prompt)
            ]
            labels = [gold for _, gold in asked]
            rows = [_row(prompts[i], finish_reasons[i]) if CustomReward.parse(kind) else {} for i, _ in asked]
            for (i, _), grade in zip(asked, pool.grade([responses[i] for i, _ in asked], labels, rows), strict=True):
                if CustomReward.parse(kind) and grade.problem and grade.problem.startswith(CRASH):
                    raise UserError(f"{prompts[i].source}: rewards: {kind} failed on a response to it: {grade.problem}")
                if grades[i] is None or grade.score > grades[i].score:
                    grades[i] = grade
        return grades

    @property
    def workers(self) -> int:
        """Answers graded at a time, by all pools together."""
        return sum(pool.workers for pool in self._pools.values())

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _golds(kind: str, prompt: Prompt) -> tuple[str | None, ...]:
    """What an answer is held against, the best of several."""
    if kind == "code":
        return (prompt.tests,)
    return prompt.golds if prompt.any_of and kind in GRADERS else (prompt.label,)


def _row(prompt: Prompt, finish_reason: str) -> dict:
    """What a function of the user's own is told beside response and label."""
    columns = {name: value for name, value in prompt.columns.items() if name not in ("response", "label")}
    return columns | {"id": prompt.id, "tests": prompt.tests, "finish_reason": finish_reason}
