"""Rows of one teacher, forward and backward together, every token of the vocabulary judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megatron_gopd.config.gopd import TokenCorrection
from megatron_gopd.data.packing import MicroBatch
from megatron_gopd.kernels import Target, TargetHead
from megatron_gopd.kernels.linear_distribution_loss import DistributionLossFunction
from megatron_gopd.mcore.forward import slice_of
from megatron_gopd.objective import TokenRows
from megatron_gopd.objective.diagnostics import disagreement, lambda_limit
from megatron_gopd.policies.exchange import fetch
from megatron_gopd.policies.hidden_states import Held, Piece
from megatron_gopd.policies.lm_head import distribution_losses, log_sums, shared_law
from megatron_gopd.policies.payload import Head, Judged
from megatron_gopd.policies.token_table import TokenTable

if TYPE_CHECKING:
    from megatron_gopd.policies.distribution_payload import DistributionPayload

STRIDE = 64  # tokens of the batch of which one is looked at: a percent of what its heads cost
LOOKED_AT = ("lambda_limit", "disagreement")


class DistributionPortion:
    """See payload.Portion."""

    def __init__(self, payload: DistributionPayload, teacher: str, pieces: list[Piece], rows: list[int], *, last: bool):
        self._payload, self._teacher, self._pieces = payload, teacher, pieces
        self.rows, self.last = rows, last
        self._states: dict[str, dict[int, Tensor]] = {}  # hidden states by who, by micro-batch
        self._looked_at: dict[str, dict[int, Tensor]] = {}  # of some tokens, the same on every tensor-parallel rank
        self._places: dict[int, Tensor] = {}  # which tokens those are, by micro-batch

    def prepare(self, head: Head | None, micro_batches: Sequence[MicroBatch], table: TokenTable) -> None:
        """Fetch hidden states to the ranks of the student's last stage. Collective over all ranks."""
        judged = list(micro_batches) if head is not None and head.model.is_last_stage else []
        judges = self._payload.scorers.judges(self._teacher)
        wanted = [_of_this_rank(head, micro_batch, table) for micro_batch in judged]
        if len(judges) > 1:
            self._places = {id(each): table.indices(each) % STRIDE == 0 for each in judged}
            wanted += [table.indices(micro_batch)[self._places[id(micro_batch)]] for micro_batch in judged]
        indices = torch.cat([torch.empty(0, dtype=torch.int64), *wanted])
        for who in judges:
            fetched = fetch(self._held(who, table), indices, table.tokens).split([len(each) for each in wanted])
            self._states[who] = dict(zip(map(id, judged), fetched, strict=False))
            self._looked_at[who] = dict(zip(map(id, judged), fetched[len(judged) :], strict=False))
        self._pieces = []

    def release(self) -> None:
        """Let go of hidden states, whoever still holds the portion."""
        for each in (self._pieces, self._states, self._looked_at):
            each.clear()

    def judge(
        self, loss: DistributionLossFunction, head: Head, hidden: Tensor, micro_batch: MicroBatch, rows: TokenRows
    ) -> Judged:
        asked = self._payload.scorers.config.algorithm
        heads = [self._target_head(who, head, hidden, micro_batch) for who in self._states]
        target = Target(
            heads[0],
            heads[1] if len(heads) > 1 else None,
            self._payload.scorers.config.lambda_of(self._teacher),
            self._payload.scorers.shared,
            clamp=asked.clamp,
            divergence=asked.divergence,
        )
        found = distribution_losses(head, hidden, micro_batch, loss, rows, target)
        columns = {"logprobs": found.logprobs, "entropy": found.entropy, "teacher_logprobs": found.teacher_logprobs}
        if found.reference_logprobs is not None:
            columns |= {"reference_logprobs": found.reference_logprobs} | self._look(head, micro_batch)
        elif self._payload.scorers.config.extrapolates():  # other teachers do, whose tokens have these columns
            nothing = torch.full_like(found.logprobs, torch.nan)
            columns |= dict.fromkeys(("reference_logprobs", *LOOKED_AT), nothing)
        return Judged(found.loss, columns | found.metrics)

    def _held(self, who: str, table: TokenTable) -> Held:
        """What this rank holds of the portion, under the indices of the whole batch."""
        found, place = [], 0
        for piece in self._pieces:
            numbers = self.rows[place : place + len(piece.trajectories)]
            found.append(piece.of_batch(who, table.starts[torch.tensor(numbers)]))
            place += len(numbers)
        return Held.joined(found)

    def _target_head(self, who: str, head: Head, hidden: Tensor, micro_batch: MicroBatch) -> TargetHead:
        shard = self._payload.shard(who, self._teacher, head)
        states = self._states[who][id(micro_batch)].to(hidden.device)
        log_sum = None
        if self._payload.scorers.config.algorithm.clamp is not None:
            log_sum = log_sums(head.model, states, shard, micro_batch, head.temperature, head.naive)
        return TargetHead(states, shard.weight, shard.rows, log_sum)

    def _look(self, head: Head, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """objective.diagnostics of every STRIDE-th token of the batch; NaN for the others."""
        scorers, laws = self._payload.scorers, []
        for who, states in self._looked_at.items():
            shard = self._payload.shard(who, self._teacher, head)
            laws.append(shared_law(head.model, states[id(micro_batch)], shard, scorers.shared, head.temperature))
        correction = scorers.config.algorithm.rollout_correction or TokenCorrection()
        columns = torch.full((len(LOOKED_AT), len(micro_batch.targets)), torch.nan)
        found = torch.stack([lambda_limit(*laws, correction.cap), disagreement(*laws)])
        columns[:, self._places[id(micro_batch)]] = found.float().cpu()
        return dict(zip(LOOKED_AT, columns, strict=True))


def _of_this_rank(head: Head, micro_batch: MicroBatch, table: TokenTable) -> Tensor:
    """The tokens whose hidden states of the student this rank's head gets."""
    indices = table.indices(micro_batch)
    return indices if head.naive else indices[slice_of(head.model, micro_batch)]
