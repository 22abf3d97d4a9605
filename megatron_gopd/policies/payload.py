"""What an update reads of scorers beside log-probs, in the portions that memory holds; and the usual case: nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from megatron_gopd.data.packing import MicroBatch
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.kernels.linear_distribution_loss import DistributionLossFunction
from megatron_gopd.kernels.linear_token_loss import TokenLossFunction
from megatron_gopd.objective import TokenRows
from megatron_gopd.policies.lm_head import Head, token_losses
from megatron_gopd.policies.token_table import TokenTable

LossFunction = TokenLossFunction | DistributionLossFunction


class Judged(NamedTuple):
    """What the head makes of one micro-batch."""

    loss: Tensor  # scalar, with its gradient
    columns: dict[str, Tensor]  # name -> [response tokens]; logprobs and entropy among them


class Portion(Protocol):
    """Rows of a batch that are forward and backward together."""

    rows: Sequence[int]  # their numbers in the batch
    last: bool  # of the batch: its gradients are complete

    def prepare(self, head: Head | None, micro_batches: Sequence[MicroBatch], table: TokenTable) -> None:
        """Bring what is read of scorers to the ranks that read it. Collective over all ranks; None: without a part."""

    def judge(
        self, loss: LossFunction, head: Head, hidden: Tensor, micro_batch: MicroBatch, rows: TokenRows
    ) -> Judged: ...


class Payload(Protocol):
    def columns(self, loss: LossFunction, known: TokenRows) -> list[str]:
        """What `judge` tells of every token beside log-prob and entropy."""

    def portions(self, batch: Sequence[Trajectory]) -> Iterator[Portion]:
        """Collective over all ranks; draw all of them."""

    def fill(self, batch: Sequence[Trajectory], columns: dict[str, list]) -> None:
        """Put into trajectories what only the update has found. Raises UserError: a value that is not finite."""


class _LogprobsAlone:
    """A token loss reads log-probs that trajectories hold already: one portion, nothing to bring."""

    last = True

    def __init__(self, rows: Sequence[int] = ()):
        self.rows = rows

    def columns(self, loss: TokenLossFunction, known: TokenRows) -> list[str]:
        nothing = torch.empty(0)  # asked on no tokens: ranks that see none must know as well
        return list(loss(nothing, nothing, known.select(slice(0, 0))).metrics)

    def portions(self, batch: Sequence[Trajectory]) -> Iterator[_LogprobsAlone]:
        yield _LogprobsAlone(range(len(batch)))

    def prepare(self, head: Head | None, micro_batches: Sequence[MicroBatch], table: TokenTable) -> None:
        pass

    def judge(
        self, loss: TokenLossFunction, head: Head, hidden: Tensor, micro_batch: MicroBatch, rows: TokenRows
    ) -> Judged:
        found = token_losses(head, hidden, micro_batch, loss, rows)
        return Judged(found.loss, {"logprobs": found.logprobs, "entropy": found.entropy} | found.metrics)

    def fill(self, batch: Sequence[Trajectory], columns: dict[str, list]) -> None:
        pass


LOGPROBS = _LogprobsAlone()
