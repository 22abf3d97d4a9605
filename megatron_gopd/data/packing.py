"""Rows of token ids -> packed micro-batches, shared evenly between ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """What one model reads of one trajectory: its own rendering of the prompt, then the response."""

    prompt_tokens: Sequence[int]
    response_tokens: Sequence[int]

    def __len__(self) -> int:
        """Positions a forward pass computes: the last token is only ever a target."""
        return len(self.prompt_tokens) + len(self.response_tokens) - 1


@dataclass
class MicroBatch:
    """Rows end to end, without padding between them."""

    rows: list[int]  # which rows of the batch, in order
    tokens: Tensor  # [tokens] int64
    cu_seqlens: Tensor  # [rows + 1] int32, where each row starts; a last, longer one holds padding
    positions: Tensor  # [response tokens] positions whose hidden state predicts a response token
    targets: Tensor  # [response tokens] the response tokens, row after row


def share(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Split rows over data-parallel ranks with nearly equal tokens: longest first, to the least loaded.

    Returns the row numbers of each rank, ascending.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        rank = min(range(ranks), key=lambda rank: (loads[rank], len(shares[rank])))
        shares[rank].append(row)
        loads[rank] += lengths[row]
    return [sorted(rows) for rows in shares]


def pack(rows: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group rows into micro-batches of at most `budget` tokens (a longer row is alone): first fit, longest first."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        place = next((i for i, free in enumerate(room) if free >= lengths[row]), None)
        if place is None:
            bins.append([])
            room.append(budget)
            place = -1
        bins[place].append(row)
        room[place] -= lengths[row]
    return bins


def build_micro_batch(rows: Sequence[int], batch: Sequence[Row], multiple: int = 1) -> MicroBatch:
    """Concatenate `batch[i] for i in rows`; the total is padded to a multiple (of tp, under sequence parallelism)."""
    tokens, starts, positions, targets = [], [0], [], []
    for row in (batch[i] for i in rows):
        first = len(tokens) + len(row.prompt_tokens) - 1
        tokens += [*row.prompt_tokens, *row.response_tokens][:-1]
        starts.append(len(tokens))
        positions += range(first, first + len(row.response_tokens))
        targets += row.response_tokens
    padding = -len(tokens) % multiple
    if padding:
        tokens += [0] * padding
        starts.append(len(tokens))
    return MicroBatch(
        list(rows),
        torch.tensor(tokens),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor(positions),
        torch.tensor(targets),
    )
