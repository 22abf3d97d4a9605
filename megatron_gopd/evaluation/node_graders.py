"""Grading on every node of the job: each takes the next answer when it is free."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Self

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.data import Trajectory
from megatron_gopd.nodes import Nodes
from megatron_gopd.ranks import is_first, take_number
from megatron_gopd.rewards import Grade, Graders, check_machine
from megatron_gopd.terminal import say

_queues = itertools.count()  # all ranks grade the same batches, so they count alike


def check_machines(kinds: Collection[str | None], sandbox: Sandbox) -> None:
    """Raises UserError: what check_machine refuses on any node, named where others can. Collective."""
    Nodes.of_job().each(lambda: check_machine(kinds, sandbox))


class NodeGraders:
    """The graders that `rewards` may ask for on each node, in the care of its first rank. Every rank holds one."""

    def __init__(self, rewards: str, sandbox: Sandbox):
        """Collective. Workers start when they are needed."""
        self._nodes = Nodes.of_job()
        self._graders = Graders(rewards, sandbox, self._nodes.here.cores) if self._nodes.acts else None

    def grade(self, batch: Sequence[Trajectory], tokenizer) -> list[Grade | None]:
        """One Grade a trajectory, in order, None where nothing grades its prompt. Collective; every rank holds `batch`.

        A node whose workers die before they take up an answer, or that meets an error of its system, is left out of
        this batch, and the others grade what it has not.

        Raises:
            UserError: the user's own function failed, which is no fault of an answer.
            RuntimeError: no node is left that can grade.
        """

        def grade(number: int) -> Grade | None:
            answer = batch[number]
            return self._graders.grade([answer.prompt], [answer.text(tokenizer)], [answer.finish_reason])[0]

        grades: dict[int, Grade | None] = {}
        lost: dict[str, str] = {}
        while left := [number for number in range(len(batch)) if number not in grades]:
            if len(lost) == len(self._nodes.all):
                raise RuntimeError("no node is left that can grade: " + "; ".join(map(": ".join, lost.items())))
            for name, share in self._shares(grade, left, lost).items():
                grades |= share.grades
                if share.lost:
                    lost[name] = share.lost
                    if is_first():
                        say(f"warning: {name} grades no more of this batch: {share.lost}", flush=True)
        return [grades[number] for number in range(len(batch))]

    def close(self) -> None:
        if self._graders:
            self._graders.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _shares(
        self, grade: Callable[[int], Grade | None], numbers: list[int], lost: Collection[str]
    ) -> dict[str, _Share]:
        """What each node graded of the answers with these numbers."""
        queue = f"graded/{next(_queues)}"

        def share() -> _Share:
            if self._nodes.here.name in lost:
                return _Share()
            # a thread for each worker and one more, whose answer waits for the first worker that is free
            return _Share.of(grade, numbers, queue, self._graders.workers + 1)

        return self._nodes.each(share)


@dataclass
class _Share:
    """What one node graded, by number, and why it stopped before all was graded, if it did."""

    grades: dict[int, Grade | None] = field(default_factory=dict)
    lost: str = ""

    @classmethod
    def of(cls, grade: Callable[[int], Grade | None], numbers: list[int], queue: str, threads: int) -> Self:
        """Grade in `threads` threads, the next of `numbers` that no node has taken from the queue."""
        share, stop = cls(), Event()

        def work() -> None:
            while not stop.is_set() and (place := take_number(queue)) < len(numbers):
                share.grades[numbers[place]] = grade(numbers[place])

        with ThreadPoolExecutor(threads) as pool:
            try:
                for each in [pool.submit(work) for _ in range(threads)]:
                    each.result()
            except (OSError, RuntimeError) as error:  # of a pool or a sandbox, on a machine that cannot
                share.lost = f"{type(error).__name__}: {error}"
            finally:
                stop.set()
        return share
