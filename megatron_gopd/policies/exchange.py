"""Rows of a table that is spread over ranks, to the ranks that want them; no rank holds the whole."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd import machine, objects
from megatron_gopd.policies.hidden_states import Held

ROUND_BYTES = 2**28  # that a rank sends at a time, through its device


def fetch(held: Held, wanted: Tensor, tokens: int) -> Tensor:
    """The hidden states of `wanted` [n] int64 -> [n, h], from whichever ranks hold them, in host memory.

    Collective over all ranks. Into a rank come n rows, 8 n bytes of questions, and 8 bytes of every token held.

    Args:
        tokens: of the table; all indices are below.
    """
    owner, place = _directory(held.indices, tokens)
    owner_of = owner[wanted]
    if (owner_of < 0).any():
        raise RuntimeError("some response tokens have no hidden states: a fault of the layout")
    order = torch.argsort(owner_of, stable=True)
    asked = torch.bincount(owner_of, minlength=dist.get_world_size())
    result = held.values.new_empty(len(wanted), held.values.shape[1])
    result[order] = _rows(held.values, *_ask(place[wanted][order], asked), asked)
    return result


def _directory(mine: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """For every token the rank that holds it, -1: none; and its place there. [tokens] int64 each."""
    owner, place = torch.full((2, tokens), -1)
    for rank, indices in enumerate(objects.all_gather(mine.numpy())):
        owner[indices], place[indices] = rank, torch.from_numpy(np.arange(len(indices)))
    return owner, place


def _ask(places: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """`asked` [ranks] of `places`, for each rank in turn -> those that ranks ask of this one, and how many each."""
    sizes = torch.empty_like(asked)
    dist.all_to_all_single(sizes, asked)
    received = places.new_empty(int(sizes.sum()))
    dist.all_to_all_single(received, places, sizes.tolist(), asked.tolist())
    return received, sizes


def _rows(values: Tensor, places: Tensor, sizes: Tensor, asked: Tensor) -> Tensor:
    """values[places], `sizes` of them for each rank in turn, to those ranks; `asked` come back from each."""
    ranks, device = len(sizes), machine.device()
    step = max(1, ROUND_BYTES // (ranks * values.shape[1] * values.element_size()))
    longest = torch.cat([sizes, asked]).max()
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    result = values.new_empty(int(asked.sum()), values.shape[1])
    for first in range(0, int(longest), step):
        outgoing, incoming = _of_round(sizes, first, step), _of_round(asked, first, step)
        sent = values[places[torch.cat(outgoing)]].to(device)
        received = sent.new_empty(sum(map(len, incoming)), sent.shape[1])
        dist.all_to_all_single(received, sent, [len(each) for each in incoming], [len(each) for each in outgoing])
        result[torch.cat(incoming)] = received.cpu()
    return result


def _of_round(sizes: Tensor, first: int, step: int) -> list[Tensor]:
    """Which of rows that lie rank after rank, `sizes` of each, go in the round that begins at `first` of every rank."""
    starts = (sizes.cumsum(0) - sizes).tolist()
    return [
        torch.arange(start + min(first, size), start + min(first + step, size))
        for start, size in zip(starts, sizes.tolist(), strict=True)
    ]
