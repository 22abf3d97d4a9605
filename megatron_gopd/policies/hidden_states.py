"""Final hidden states of a frozen model, on the ranks that computed them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from megatron_gopd.data.packing import MicroBatch, Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.mcore.forward import run, slice_of
from megatron_gopd.mcore.model import Model
from megatron_gopd.policies.micro_batches import my_micro_batches


class Held(NamedTuple):
    """What this rank holds, in host memory; each token is on one rank."""

    indices: Tensor  # [tokens] int64: which response token of the batch
    values: Tensor  # [tokens, h]

    @classmethod
    def nothing(cls, hidden_size: int, dtype: torch.dtype) -> Self:
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, hidden_size, dtype=dtype))

    @classmethod
    def joined(cls, pieces: Sequence[Held]) -> Self:
        return cls(*map(torch.cat, zip(*pieces, strict=True)))


@dataclass
class Piece:
    """Trajectories of one teacher, and what each model that judges them gave."""

    teacher: str
    trajectories: list[Trajectory]
    held: dict[str, Held]  # by who; indices are of the response tokens of `trajectories`, end to end

    @property
    def tokens(self) -> int:
        return sum(map(len, self.trajectories))

    def of_batch(self, who: str, starts: Tensor) -> Held:
        """What this rank holds, under other indices: `starts` [rows] of each trajectory's first response token."""
        held, ends = self.held[who], torch.tensor([len(each) for each in self.trajectories]).cumsum(0)
        row = torch.bucketize(held.indices, ends, right=True)
        before = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
        return Held(starts[row] + held.indices - before[row], held.values)


def hidden_states(model: Model, rows: Sequence[Row], starts: Tensor, dtype: torch.dtype, max_tokens: int) -> Held:
    """What predicts the response tokens of `rows`, after the last norm. The ranks of the model share it out evenly.

    Collective over the model's ranks; every one passes the same rows.

    Args:
        starts: [rows] the index of each row's first response token.
        dtype: to hold it in.
        max_tokens: packed tokens a forward pass.
    """
    pieces = [Held.nothing(model.architecture.hidden_size, dtype)]

    def head(hidden: Tensor, micro_batch: MicroBatch) -> None:
        kept = _share(model, len(hidden))
        indices = starts[micro_batch.rows] + micro_batch.offsets
        pieces.append(Held(indices[slice_of(model, micro_batch)][kept], hidden[kept].to("cpu", dtype)))

    run(model, my_micro_batches(model, rows, max_tokens), head, train=False)
    return Held.joined(pieces)


def _share(model: Model, tokens: int) -> slice:
    """Without sequence parallelism every tensor-parallel rank has all of them: each keeps a part."""
    if model.config.sequence_parallel:
        return slice(None)
    rank, ranks = model.groups.tp.rank(), model.groups.tp.size()
    return slice(tokens * rank // ranks, tokens * (rank + 1) // ranks)
