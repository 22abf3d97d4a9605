"""Causal attention on packed rows without Transformer Engine, in memory linear in the tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.utils.checkpoint import checkpoint

QUERY_BLOCK = 128  # queries at a time where keys outnumber queries: the only mask built is [QUERY_BLOCK, keys]
SHORT = 256  # positions; rows up to so many are computed with others of nearly their length, for a call costs more


@dataclass
class PackedRows(PackedSeqParams):
    """Megatron's description of packed rows, which lies on the device, and where they start, known to the host: every
    layer would ask the device for it, and wait. And what layers read of a micro-batch beside its hidden states."""

    starts: list[int] = field(default_factory=list)
    routed_experts: Tensor | None = None  # see routing_replay.of_stage

    @cached_property
    def together(self) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
        """See _padded; all layers ask for it."""
        return _padded(self.starts, self.cu_seqlens_q.device)


class CausalAttention(MegatronModule):
    """core_attention: torch's kernel, short rows of like length at a time, longer ones one by one.

    Under context parallelism, keys and values are gathered.
    """

    def __init__(
        self, config, layer_number, attn_mask_type, attention_type, softmax_scale=None, pg_collection=None, **_
    ):
        super().__init__(config=config)
        self.tp_group = pg_collection.tp  # sharded_state_dict looks for it
        self.cp_group = pg_collection.cp
        self.scale = softmax_scale or config.kv_channels**-0.5

    def forward(self, query, key, value, attention_mask, packed_seq_params=None, **_) -> Tensor:
        """query [t, heads, d], key and value [t, groups, d] -> [t, heads * d]; t: this rank's positions, row by row."""
        starts = packed_seq_params.starts
        shared = query.shape[1] // key.shape[1]
        cp = self.cp_group.size()
        if cp > 1:
            key, value = _in_order(key, value, starts, self.cp_group)
        key, value = (x.repeat_interleave(shared, dim=1) if shared > 1 else x for x in (key, value))
        if cp == 1:
            return self._of_whole_rows(query, key, value, packed_seq_params)
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        lengths = [last - first for first, last in zip(starts, starts[1:], strict=False)]
        queries = query.split([length // cp for length in lengths], dim=2)
        rows, rank = [], self.cp_group.rank()
        for local, *row in zip(queries, key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True):
            chunk = local.shape[2] // 2
            for part, number in zip(local.chunk(2, dim=2), (rank, 2 * cp - 1 - rank), strict=True):
                rows.append(self._from(number * chunk, part, *row))
        return torch.cat(rows, dim=2)[0].transpose(0, 1).flatten(1)

    def _of_whole_rows(self, query: Tensor, key: Tensor, value: Tensor, rows: PackedRows) -> Tensor:
        """[t, heads, d] each -> [t, heads * d]. Positions are taken once: the gradient of a part is as large as all."""
        shapes, padded, kept = rows.together
        sizes = [count * longest for count, longest in shapes]
        taken = (x.index_select(0, padded).split(sizes) for x in (query, key, value))
        outputs = []
        for shape, *parts in zip(shapes, *taken, strict=True):
            q, k, v = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
            outputs.append(attended.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs).index_select(0, kept).flatten(1)

    def _from(self, start: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of queries that stand at `start` and after, each to the keys up to its own position."""
        end, outputs = start + query.shape[2], []
        for block in reversed(query.split(QUERY_BLOCK, dim=2)):  # the largest first: the others fit where it was
            start = end - block.shape[2]
            # computed again in the backward pass: the masks of all blocks, kept, would be quadratic in the row
            outputs.append(
                checkpoint(self._block, start, block, key[:, :, :end], value[:, :, :end], use_reentrant=False)
            )
            end = start
        return torch.cat(outputs[::-1], dim=2)

    def _block(self, start: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        places = torch.arange(key.shape[2], device=query.device)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=places <= places[start:, None], scale=self.scale
        )


def _padded(starts: list[int], device: torch.device) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """How rows are computed together: (rows, longest) of each group, the positions all groups read, padded, and which
    of those are positions of a row. Past its end a row repeats its last position: none looks there."""
    shapes, padded, kept = [], [], []
    for first, lengths in _alike(starts):
        longest = max(lengths)
        begins = torch.tensor([0, *lengths[:-1]]).cumsum(0)[:, None] + first
        ends = begins + torch.tensor(lengths)[:, None]
        places = begins + torch.arange(longest)
        shapes.append((len(lengths), longest))
        padded.append(places.clamp(max=ends - 1).flatten())
        kept.append((places < ends).flatten())
    return shapes, torch.cat(padded).to(device), torch.cat(kept).nonzero()[:, 0].to(device)


def _alike(starts: list[int]) -> Iterator[tuple[int, list[int]]]:
    """(start of the first, lengths) of neighbouring rows to be computed together; micro-batches come longest first."""
    lengths = [last - first for first, last in zip(starts, starts[1:], strict=False)]
    begin = 0
    for end in range(1, len(lengths) + 1):
        group = lengths[begin : end + 1]
        if end == len(lengths) or max(group) > SHORT or 4 * min(group) < 3 * max(group):
            yield starts[begin], lengths[begin:end]
            begin = end


def _in_order(key: Tensor, value: Tensor, starts: list[int], group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Keys and values [t, groups, d] of all context-parallel ranks, in the order of the rows; gradients scatter back.

    Rank r holds chunks r and 2 cp - 1 - r of each row's 2 cp.
    """
    cp = group.size()
    gathered = gather_from_sequence_parallel_region(torch.stack((key, value), dim=1), group=group)
    places = torch.arange(starts[-1]).view(cp, -1)  # [rank, local position] -> place in `gathered`
    order = []
    for first, last in zip(starts, starts[1:], strict=False):
        chunks = [places[rank, first // cp : last // cp].chunk(2) for rank in range(cp)]
        order += [chunks[rank][0] for rank in range(cp)] + [chunks[rank][1] for rank in reversed(range(cp))]
    return gathered[torch.cat(order).to(gathered.device)].unbind(1)
