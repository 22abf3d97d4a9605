"""The machines of this job: which there are, and which rank acts for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import torch.distributed as dist

from megatron_gopd.cores import usable_cores
from megatron_gopd.errors import UserError
from megatron_gopd.srun import this_node

Result = TypeVar("Result")


@dataclass(frozen=True)
class Nodes:
    """The machines of the job, each with its first rank, which acts for it; in the order of these ranks."""

    first: dict[str, int]
    cores: frozenset[int]  # that the ranks of this node may run on, together

    @classmethod
    def of_job(cls) -> Self:
        """Collective over the ranks of the job, by gloo."""
        told: list[tuple[str, frozenset[int]]] = [("", frozenset())] * dist.get_world_size()
        dist.all_gather_object(told, (this_node(), usable_cores()))
        names = [name for name, _ in told]
        cores = (theirs for name, theirs in told if name == this_node())
        return cls({name: names.index(name) for name in dict.fromkeys(names)}, frozenset().union(*cores))

    @property
    def mine(self) -> str | None:
        """The node that this rank acts for; None where another does."""
        return next((name for name, rank in self.first.items() if rank == dist.get_rank()), None)

    def each(self, function: Callable[[], Result]) -> dict[str, Result]:
        """Call `function` once on every node; every rank gets what it returned there. Collective.

        Raises UserError on every rank: what the first of the nodes that failed raised, led by the names of all that
        raised the same, unless all nodes did.
        """
        answer: tuple[Result | None, UserError | None] = (None, None)
        if self.mine:
            try:
                answer = function(), None
            except UserError as error:
                answer = None, error
        answers = [answer] * dist.get_world_size()
        dist.all_gather_object(answers, answer)
        errors = {name: answers[rank][1] for name, rank in self.first.items() if answers[rank][1]}
        if errors:
            error = next(iter(errors.values()))
            alike = [name for name, other in errors.items() if str(other) == str(error)]
            everywhere = len(alike) == len(self.first)
            raise error if everywhere else type(error)(f"on {', '.join(alike)}: {error}")
        return {name: answers[rank][0] for name, rank in self.first.items()}
