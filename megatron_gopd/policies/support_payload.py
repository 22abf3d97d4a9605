"""Supports for a distribution loss: the divergence of coarse distributions, differentiated through the student's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.data.packing import MicroBatch
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.kernels.linear_distribution_loss import DistributionLossFunction
from megatron_gopd.kernels.one_pass import stated
from megatron_gopd.objective import TokenRows, coarse_divergence
from megatron_gopd.policies.lm_head import support_logprobs
from megatron_gopd.policies.payload import Head, Judged
from megatron_gopd.policies.support import Support
from megatron_gopd.policies.token_table import TokenTable
from megatron_gopd.servers.top_logprobs import NOBODY


class SupportPayload:
    """One portion: the supports of the whole batch are on every rank already."""

    def __init__(self, config: Config, take: Callable[[Sequence[Trajectory]], list[Support]]):
        """take: a batch's supports, once."""
        self._asked, self._take = config.algorithm, take

    def columns(self, loss: DistributionLossFunction, known: TokenRows) -> list[str]:
        nothing = torch.empty(0)  # asked on no tokens: ranks that see none must know as well
        return [*loss(nothing, nothing, nothing, known.select(slice(0, 0))).metrics, "tail_mass"]

    def portions(self, batch: Sequence[Trajectory]) -> Iterator[_Portion]:
        yield _Portion(self._asked, self._take(batch))

    def fill(self, batch: Sequence[Trajectory], columns: dict[str, list[np.ndarray]]) -> None:
        pass


class _Portion:
    last = True

    def __init__(self, asked, supports: list[Support]):
        """asked: the section of the algorithm."""
        self.rows = range(len(supports))
        self._asked = asked
        self._ids, self._teacher, self._reference = map(_flat, zip(*supports, strict=True))
        self._table: TokenTable | None = None

    def prepare(self, head: Head | None, micro_batches: Sequence[MicroBatch], table: TokenTable) -> None:
        self._table = table

    def judge(
        self, loss: DistributionLossFunction, head: Head, hidden: Tensor, micro_batch: MicroBatch, rows: TokenRows
    ) -> Judged:
        where, device, asked = self._table.indices(micro_batch), hidden.device, self._asked
        ids, teacher = self._ids[where], self._teacher[where].to(device)
        reference = None if self._reference is None else self._reference[where].to(device)
        student, entropy = support_logprobs(head.model, hidden, micro_batch, ids, head.temperature, head.naive)
        known = student, teacher, reference, (ids != NOBODY).to(device)
        divergence, tail = coarse_divergence(*known, rows.lambda_or(asked.lambda_), asked.clamp, asked.divergence)
        logprobs = student[:, 0]
        result = loss(divergence.detach(), logprobs.detach(), entropy.detach(), rows)
        total = stated(result.loss, (divergence, result.dloss_ddivergence), (logprobs, result.dloss_dlogprobs))
        columns = {"logprobs": logprobs.detach(), "entropy": entropy.detach(), "tail_mass": tail}
        return Judged(total, columns | result.metrics)


def _flat(column: Sequence[np.ndarray | None]) -> Tensor | None:
    """[response tokens of the batch, 1 + k]; None where nobody was asked."""
    return None if column[0] is None else torch.from_numpy(np.concatenate(column))
