"""Cutting the tokens into chunks, and moving a chunk's hidden states and their gradients between ranks.

Under sequence parallelism chunk j takes rows j c .. (j + 1) c of EVERY rank's slice, so each chunk is one even
all-gather of hidden states and one even reduce-scatter of their gradients; the whole [tokens, h] never exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.tree import tree_sum

TOKENS = 2048  # of a chunk, over all ranks
KEPT_BYTES = 320 * 2**20  # what one_pass may keep of a chunk: exp(logits); smaller chunks go over dW more often
# On a GPU a chunk costs dW's memory a read and a write: 4096 tokens took 3.94 of a GEMM where 2048 took 4.95 and 8192
# 3.97 (docs/kernel_gpu.md), and their exp(logits) over 151,936 ids are 1.16 GiB in bf16.
GPU_TOKENS, GPU_KEPT_BYTES = 4096, 1280 * 2**20


def most_tokens(device: torch.device) -> int:
    """Of a chunk whose exp(logits) are not kept."""
    return GPU_TOKENS if device.type == "cuda" else TOKENS


def tokens_per_chunk(vocabulary_rows: int, itemsize: int, device: torch.device, kept_bytes: int | None = None) -> int:
    """Tokens whose exp(logits) over `vocabulary_rows` fit into `kept_bytes`, at least 64 and at most `most_tokens`.

    kept_bytes: default: what suits the device where nothing is known of its free memory.
    """
    if kept_bytes is None:
        kept_bytes = GPU_KEPT_BYTES if device.type == "cuda" else KEPT_BYTES
    fitting = kept_bytes // max(1, vocabulary_rows * itemsize)
    return min(most_tokens(device), max(64, fitting // 64 * 64))


@dataclass(frozen=True)
class Chunk:
    """Some rows of the whole micro-batch, and where they come from."""

    rows: slice | Tensor  # of all rows, in the order `gather` gives them
    mine: slice | Tensor  # of this rank's hidden states, those it contributes
    group: dist.ProcessGroup | None = None  # None: every rank has the rows already
    width: int = 0  # rows every rank sends, fewer ones padded
    real: Tensor | None = None  # which of the sent rows are not padding; None: all

    def gather(self, hidden: Tensor) -> Tensor:
        """This rank's hidden states -> the chunk's [tokens, h]."""
        local = hidden[self.mine]
        if self.group is None:
            return local
        if len(local) < self.width:
            local = torch.cat([local, local.new_zeros(self.width - len(local), local.shape[1])])
        gathered = local.new_empty(self.group.size() * self.width, local.shape[1])
        dist.all_gather_into_tensor(gathered, local.contiguous(), group=self.group)
        return gathered if self.real is None else gathered[self.real]

    def scatter(self, share: Tensor, into: Tensor, exact: bool) -> None:
        """Every rank's share [tokens, h] of the chunk's gradient, summed, -> this rank's rows of `into`.

        exact: add the shares in a fixed tree, where a reduce-scatter adds them in an order of its own.
        """
        if self.group is None:
            into[self.mine] = share.to(into.dtype)
            return
        ranks = self.group.size()
        if self.real is not None:
            padded = share.new_zeros(ranks * self.width, share.shape[1])
            padded[self.real] = share
            share = padded
        if exact:
            shares = torch.empty_like(share)
            dist.all_to_all_single(shares, share, group=self.group)
            mine = tree_sum(shares.view(ranks, self.width, -1))
        else:
            mine = share.new_empty(self.width, share.shape[1])
            dist.reduce_scatter_tensor(mine, share, group=self.group)
        into[self.mine] = mine[: len(into[self.mine])].to(into.dtype)


def cut(
    tokens: int, size: int, rows_per_rank: Sequence[int] | None, group: dist.ProcessGroup | None, parts: int = 1
) -> Iterator[Chunk]:
    """The chunks of this rank's `tokens` rows, each of at most about `size` rows over all ranks.

    Args:
        rows_per_rank: under sequence parallelism, the rows every rank of `group` holds; slices follow each other.
        parts: equal parts into which each slice is cut, of all of which a chunk takes its rows: with a fixed number of
            parts over all ranks, a chunk holds the same rows in the same order however many ranks there are.
    """
    if rows_per_rank is None or len(rows_per_rank) == 1:
        group, rows_per_rank = None, [tokens]
    ranks, rank = len(rows_per_rank), 0 if group is None else group.rank()
    longest = -(-max(rows_per_rank) // parts)
    step = max(1, size // (ranks * parts))
    for start in range(0, longest, step):
        stop = min(start + step, longest)
        mine = _rows_of_slice(rows_per_rank[rank], start, stop, longest, parts)
        if group is None:
            yield Chunk(mine, mine)
            continue
        local = torch.cat([torch.arange(start, stop) + longest * part for part in range(parts)])
        first = torch.tensor([0, *rows_per_rank]).cumsum(0)[:-1]
        rows = (first[:, None] + local).flatten()
        real = (local < torch.tensor(rows_per_rank)[:, None]).flatten()
        yield Chunk(rows[real], mine, group, len(local), None if real.all() else real.nonzero()[:, 0])


def _rows_of_slice(length: int, start: int, stop: int, longest: int, parts: int) -> slice | Tensor:
    if parts == 1:
        return slice(min(start, length), min(stop, length))
    return torch.cat([torch.arange(start, stop) + longest * part for part in range(parts)])
