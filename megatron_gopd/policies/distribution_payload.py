"""Hidden states for a distribution loss: in portions of one teacher, to the ranks of the student's last stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from megatron_gopd.data.packing import in_order
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.kernels.linear_distribution_loss import DistributionLossFunction
from megatron_gopd.objective import TokenRows
from megatron_gopd.policies.distribution_portion import LOOKED_AT, DistributionPortion
from megatron_gopd.policies.hidden_states import Piece
from megatron_gopd.policies.payload import Head
from megatron_gopd.policies.scorers import refuse_non_finite
from megatron_gopd.policies.target_heads import Shard, load_shard

if TYPE_CHECKING:
    from megatron_gopd.policies.hidden_scorers import HiddenScorers


class DistributionPayload:
    """Of HiddenScorers. A rank of the student fetches at most half of training.hidden_states_gib at a time."""

    def __init__(self, scorers: HiddenScorers):
        self.scorers = scorers
        self._shards: dict[str, Shard] = {}  # by folder

    def columns(self, loss: DistributionLossFunction, known: TokenRows) -> list[str]:
        nothing = torch.empty(0)  # asked on no tokens: ranks that see none must know as well
        rows = known.select(slice(0, 0))
        rows.teacher_logprobs = rows.reference_logprobs = nothing
        scored = ["teacher_logprobs"]
        if self.scorers.config.extrapolates():
            scored += ["reference_logprobs", *LOOKED_AT]
        return [*loss(nothing, nothing, nothing, rows).metrics, *scored]

    def portions(self, batch: Sequence[Trajectory]) -> Iterator[DistributionPortion]:
        """Collective over all ranks. Of all that was held or fetched, nothing outlives its portion."""
        numbers = {id(trajectory): number for number, trajectory in enumerate(batch)}
        groups = deque(self._cut(batch, numbers))
        while groups:
            yield (portion := self._portion(*groups.popleft(), numbers, last=not groups))
            portion.release()

    def _portion(
        self, teacher: str, ahead: list[Piece], late: list[Trajectory], numbers: dict[int, int], *, last: bool
    ) -> DistributionPortion:
        found = ahead or [self.scorers.piece(teacher, late)]
        rows = [numbers[id(trajectory)] for piece in found for trajectory in piece.trajectories]
        return DistributionPortion(self, teacher, found, rows, last=last)

    def fill(self, batch: Sequence[Trajectory], columns: dict[str, list[np.ndarray]]) -> None:
        for number, trajectory in enumerate(batch):
            names = ("teacher_logprobs", "reference_logprobs")
            for name, (who, settings) in zip(
                names, self.scorers.judges(trajectory.prompt.teacher).items(), strict=False
            ):
                refuse_non_finite(who, settings, values := columns[name][number], trajectory)
                setattr(trajectory, name, values)

    def shard(self, who: str, teacher: str, head: Head) -> Shard:
        settings = self.scorers.judges(teacher)[who]
        if settings.model not in self._shards:
            self._shards[settings.model] = load_shard(settings, head.model)
        return self._shards[settings.model]

    def _cut(
        self, batch: Sequence[Trajectory], numbers: Container[int]
    ) -> Iterator[tuple[str, list[Piece], list[Trajectory]]]:
        """(teacher, what is held already, what is to be computed), each as much as a rank may fetch, or one row.

        One of the two is empty; what is held goes first, to make room.
        """
        pieces = [piece for piece in self.scorers.take() if id(piece.trajectories[0]) in numbers]
        there = {id(trajectory) for piece in pieces for trajectory in piece.trajectories}
        for teacher in self.scorers.config.teachers:
            ahead = [piece for piece in pieces if piece.teacher == teacher]
            yield from ((teacher, group, []) for group in self._groups(teacher, ahead))
        for teacher in self.scorers.config.teachers:
            late = [each for each in batch if each.prompt.teacher == teacher and id(each) not in there]
            yield from ((teacher, [], group) for group in self._groups(teacher, late))

    def _groups(self, teacher: str, items: list) -> Iterator[list]:
        """Pieces or trajectories, as many together as ranks may hold and fetch, at least one."""
        fetched = self.scorers.token_bytes(teacher) / self._replicas()
        most = self.scorers.budget / max(fetched, self.scorers.token_bytes_held(teacher))
        sizes = [item.tokens if isinstance(item, Piece) else len(item) for item in items]
        return ([items[number] for number in numbers] for numbers in in_order(sizes, most))

    def _replicas(self) -> int:
        """Over how many ranks the tokens of the student's last stage are shared out."""
        layout = self.scorers.config.student.layout
        return len(layout.span(dist.get_world_size(), "student")) // (layout.tp * layout.pp)
