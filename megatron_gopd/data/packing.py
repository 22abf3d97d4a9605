"""Rows of token ids -> packed micro-batches, shared evenly between ranks. No padding but what a layout asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_gopd.data import routed_experts as routes


@dataclass(frozen=True)
class Row:
    """What one model reads of one trajectory: its own rendering of the prompt, then the response."""

    prompt_tokens: Sequence[int] | np.ndarray
    response_tokens: Sequence[int] | np.ndarray
    routed_experts: np.ndarray | None = None  # [positions, layers, top_k] of its first positions

    def __len__(self) -> int:
        """Positions a forward pass computes: the last token is only ever a target."""
        return len(self.prompt_tokens) + len(self.response_tokens) - 1


@dataclass
class MicroBatch:
    """Rows end to end; under context parallelism, this rank's part of each."""

    tokens: Tensor  # [tokens / cp] int64
    cu_seqlens: Tensor  # [rows + 1] int32, where each row starts in the whole micro-batch
    positions: Tensor  # [response tokens] places in `tokens` whose hidden state predicts a response token
    targets: Tensor  # [response tokens] those response tokens
    rows: Tensor  # [response tokens] which row of the batch each belongs to
    offsets: Tensor  # [response tokens] and which token of that row's response it is
    routed_experts: Tensor | None = None  # [tokens / cp, layers, top_k] int16; OWN: the router chooses


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


def in_order(sizes: Sequence[int], most: float) -> Iterator[list[int]]:
    """The numbers of items in their order, as many together as are `most` in sum, or one that is more."""
    group: list[int] = []
    for number, size in enumerate(sizes):
        if group and sum(sizes[each] for each in group) + size > most:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def build_micro_batch(
    rows: Sequence[int], batch: Sequence[Row], *, cp: int = 1, cp_rank: int = 0, multiple: int = 1
) -> MicroBatch:
    """Concatenate `batch[i] for i in rows`; without rows, a micro-batch of padding that nothing is read from.

    Under context parallelism each row is padded to a multiple of 2 cp and cut into as many chunks, of which rank r
    holds chunks r and 2 cp - 1 - r: causal attention then costs every rank the same. What a rank holds is padded to a
    multiple of `multiple` (of tp under sequence parallelism, of what FP8 GEMMs take).
    """
    parts = [_part(index, batch[index], cp, cp_rank) for index in rows]
    padding = -sum(part.padded for part in parts) % (multiple * (2 * cp if cp > 1 else 1))
    if padding or not parts:
        parts.append(_Part.of_padding(padding or max(multiple, 1) * 2 * cp, cp))
    starts = np.cumsum([0, *(part.padded for part in parts)])
    local_starts = starts // cp

    def whole(arrays) -> Tensor:
        return torch.from_numpy(np.concatenate(list(arrays)))

    tokens = whole(part.tokens for part in parts)
    places = [part.here for part in parts[: len(rows)]]
    return MicroBatch(
        tokens=tokens,
        cu_seqlens=torch.from_numpy(starts).int(),
        positions=whole(part.positions + start for part, start in zip(parts, local_starts, strict=False)),
        targets=whole(part.targets for part in parts),
        rows=whole(np.full_like(part.offsets, part.row) for part in parts),
        offsets=whole(part.offsets for part in parts),
        routed_experts=routes.of_micro_batch([batch[index] for index in rows], places, len(tokens)),
    )


@dataclass
class _Part:
    """One row's share of a micro-batch, on one context-parallel rank; numpy, which is quick with a few numbers."""

    row: int
    padded: int  # positions of the whole row
    here: np.ndarray  # [local] which of them lie here; beyond the row: padding
    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of_padding(cls, length: int, cp: int) -> _Part:
        nothing = np.empty(0, dtype=np.int64)
        return cls(0, length, nothing, np.zeros(length // cp, dtype=np.int64), nothing, nothing, nothing)


def _part(index: int, row: Row, cp: int, cp_rank: int) -> _Part:
    tokens = np.empty(len(row) + 1, dtype=np.int64)
    tokens[: len(row.prompt_tokens)], tokens[len(row.prompt_tokens) :] = row.prompt_tokens, row.response_tokens
    first = len(row.prompt_tokens) - 1  # this position predicts the first response token
    here = np.arange(len(row))
    inputs = tokens[:-1]
    if cp > 1:
        padded = -(-len(row) // (2 * cp)) * 2 * cp
        chunks = np.split(np.arange(padded), 2 * cp)
        here = np.concatenate([chunks[cp_rank], chunks[2 * cp - 1 - cp_rank]])
        inputs = np.concatenate([inputs, np.zeros(padded - len(inputs), dtype=np.int64)])[here]
    predicts = (here >= first) & (here < len(row))
    offsets = here[predicts] - first
    targets = tokens[len(row.prompt_tokens) :][offsets]
    return _Part(index, len(inputs) * cp, here, inputs, predicts.nonzero()[0], targets, offsets)
