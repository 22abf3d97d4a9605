"""Hidden states for a distribution loss: in portions of one teacher, to the ranks of the student's last stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.config.algorithms import TokenCorrection
from megatron_gopd.data.packing import MicroBatch, in_order
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.kernels import Target, TargetHead
from megatron_gopd.kernels.linear_distribution_loss import DistributionLossFunction
from megatron_gopd.mcore.forward import slice_of
from megatron_gopd.objective import TokenRows
from megatron_gopd.objective.diagnostics import disagreement, lambda_limit
from megatron_gopd.policies.exchange import fetch
from megatron_gopd.policies.hidden_states import Held
from megatron_gopd.policies.lm_head import distribution_losses, log_sums, shared_law
from megatron_gopd.policies.payload import Head, Judged
from megatron_gopd.policies.scorers import refuse_non_finite
from megatron_gopd.policies.target_heads import Shard, load_shard
from megatron_gopd.policies.token_table import TokenTable

STRIDE = 64  # tokens of which one is looked at: a percent of what its heads cost
LOOKED_AT = ("lambda_limit", "disagreement")

if TYPE_CHECKING:
    from megatron_gopd.policies.hidden_scorers import HiddenScorers, Piece


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
        if self.scorers.config.algorithm.extrapolates:
            scored += ["reference_logprobs", *LOOKED_AT]
        return [*loss(nothing, nothing, nothing, rows).metrics, *scored]

    def portions(self, batch: Sequence[Trajectory]) -> Iterator[_Portion]:
        """Collective over all ranks."""
        numbers = {id(trajectory): number for number, trajectory in enumerate(batch)}
        pieces = [piece for piece in self.scorers.take() if id(piece.trajectories[0]) in numbers]
        there = {id(trajectory) for piece in pieces for trajectory in piece.trajectories}
        groups = list(self._cut(pieces, [each for each in batch if id(each) not in there]))
        for place, (teacher, ahead, late) in enumerate(groups):
            found = [*ahead, *([self.scorers.piece(teacher, late)] if late else [])]
            rows = [numbers[id(trajectory)] for piece in found for trajectory in piece.trajectories]
            yield _Portion(self, teacher, found, rows, last=place == len(groups) - 1)

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

    def _cut(self, pieces: list[Piece], late: list[Trajectory]) -> Iterator[tuple[str, list[Piece], list[Trajectory]]]:
        """(teacher, what is held already, what is to be computed), each as much as a rank may fetch, or one row."""
        for teacher in self.scorers.config.teachers:
            ahead = [piece for piece in pieces if piece.teacher == teacher]
            yield from ((teacher, group, []) for group in self._groups(teacher, ahead))
            of_teacher = [each for each in late if each.prompt.teacher == teacher]
            yield from ((teacher, [], group) for group in self._groups(teacher, of_teacher))

    def _groups(self, teacher: str, items: list) -> Iterator[list]:
        """Pieces or trajectories, as many together as a rank may fetch, at least one."""
        most = self.scorers.budget * self._replicas() // self.scorers.token_bytes(teacher)
        sizes = [sum(map(len, getattr(item, "trajectories", [item]))) for item in items]
        return ([items[number] for number in numbers] for numbers in in_order(sizes, most))

    def _replicas(self) -> int:
        """Over how many ranks the tokens of the student's last stage are shared out."""
        layout = self.scorers.config.student.layout
        return len(layout.span(dist.get_world_size(), "student")) // (layout.tp * layout.pp)


class _Portion:
    def __init__(self, payload: DistributionPayload, teacher: str, pieces: list[Piece], rows: list[int], *, last: bool):
        self._payload, self._teacher, self._pieces = payload, teacher, pieces
        self.rows, self.last = rows, last
        self._values: dict[str, dict[int, Tensor]] = {}  # by who, by micro-batch
        self._looked_at: dict[str, dict[int, Tensor]] = {}  # the same, of every STRIDE-th token, on every rank whole

    def prepare(self, head: Head | None, micro_batches: Sequence[MicroBatch], table: TokenTable) -> None:
        """Collective over all ranks."""
        self._table = table
        last = head is not None and head.model.is_last_stage
        judged = list(micro_batches) if last else []
        judges = self._payload.scorers.judges(self._teacher)
        wanted = [self._wanted(head, micro_batch, table) for micro_batch in judged]
        if len(judges) > 1:
            wanted += [(indices := table.indices(micro_batch))[indices % STRIDE == 0] for micro_batch in judged]
        for who in judges:
            indices = torch.cat([torch.empty(0, dtype=torch.int64), *wanted])
            values = fetch(self._held(who, table), indices, table.tokens).split([len(each) for each in wanted])
            self._values[who] = dict(zip(map(id, judged), values, strict=False))
            self._looked_at[who] = dict(zip(map(id, judged), values[len(judged) :], strict=False))
        self._pieces = []

    def judge(
        self, loss: DistributionLossFunction, head: Head, hidden: Tensor, micro_batch: MicroBatch, rows: TokenRows
    ) -> Judged:
        asked = self._payload.scorers.config.algorithm
        targets = [self._target_head(who, head, hidden, micro_batch) for who in self._values]
        target = Target(
            targets[0],
            targets[1] if len(targets) > 1 else None,
            asked.lambda_,
            self._payload.scorers.shared,
            clamp=asked.clamp,
            divergence=asked.divergence,
        )
        found = distribution_losses(head.model, hidden, micro_batch, head.temperature, head.naive, loss, rows, target)
        columns = {"logprobs": found.logprobs, "entropy": found.entropy, "teacher_logprobs": found.teacher_logprobs}
        if found.reference_logprobs is not None:
            columns |= {"reference_logprobs": found.reference_logprobs} | self._look(head, micro_batch)
        return Judged(found.loss, columns | found.metrics)

    def _look(self, head: Head, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """objective.diagnostics of every STRIDE-th token of the batch; NaN for the others."""
        asked = self._payload.scorers.config.algorithm
        laws = [
            shared_law(
                head.model,
                of_micro_batch[id(micro_batch)],
                self._payload.shard(who, self._teacher, head),
                self._payload.scorers.shared,
                head.temperature,
            )
            for who, of_micro_batch in self._looked_at.items()
        ]
        cap = asked.rollout_correction.cap if asked.rollout_correction else TokenCorrection().cap
        columns = torch.full((len(LOOKED_AT), len(micro_batch.targets)), torch.nan)
        columns[:, self._table.indices(micro_batch) % STRIDE == 0] = torch.stack(
            [lambda_limit(*laws, cap), disagreement(*laws)]
        ).cpu()
        return dict(zip(LOOKED_AT, columns, strict=True))

    def _wanted(self, head: Head, micro_batch: MicroBatch, table: TokenTable) -> Tensor:
        indices = table.indices(micro_batch)
        return indices if head.naive else indices[slice_of(head.model, micro_batch)]

    def _held(self, who: str, table: TokenTable) -> Held:
        """What this rank holds of the portion, under the indices of the whole batch."""
        found, place = [], 0
        for piece in self._pieces:
            held, lengths = piece.held[who], torch.tensor([len(each) for each in piece.trajectories])
            row = torch.bucketize(held.indices, lengths.cumsum(0), right=True)
            offsets = held.indices - (lengths.cumsum(0) - lengths)[row]
            numbers = torch.tensor(self.rows[place : place + len(lengths)])
            found.append(Held(table.starts[numbers[row]] + offsets, held.values))
            place += len(lengths)
        return Held.joined(found)

    def _target_head(self, who: str, head: Head, hidden: Tensor, micro_batch: MicroBatch) -> TargetHead:
        shard = self._payload.shard(who, self._teacher, head)
        states = self._values[who][id(micro_batch)].to(hidden.device)
        log_sum = None
        if self._payload.scorers.config.algorithm.clamp is not None:
            log_sum = log_sums(head.model, states, shard, micro_batch, head.temperature, head.naive)
        return TargetHead(states, shard.weight, shard.rows, log_sum)
