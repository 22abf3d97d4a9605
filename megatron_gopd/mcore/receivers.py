"""Who needs what of a model's weights that go to some ranks only: what nobody needs there is not sent.

A whole tensor is put together in a tensor-parallel group (an expert's in one of expert tensor parallelism, and then in
one of expert parallelism), from shards that come from the pipeline stage which holds them.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

Ranks = list[int]  # of a group


def senders(groups: ProcessGroupCollection | None) -> list[int]:
    """The first rank of each pipeline stage and expert group of a model, in their order: what these hold is all of it.

    Collective over the job; None on a rank that has no part of the model.
    """
    told: list[tuple[int, int] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(told, None if groups is None else (groups.pp.rank(), groups.ep.rank()))
    first: dict[tuple[int, int], int] = {}
    for rank, place in enumerate(told):
        if place is not None:
            first.setdefault(place, rank)
    return [first[place] for place in sorted(first)]


class Receivers:
    """Of an export, in each group of this rank; collective."""

    def __init__(self, groups: ProcessGroupCollection, receivers: Collection[int] | None):
        """`receivers`: ranks of the job; None: all of them."""
        # backwards, from whole tensors to the shards that they are put together from
        self.here = receivers is None or dist.get_rank() in receivers
        self.of_tp = who(self.here, groups.tp)
        self.of_ep = who(self.here, groups.ep)
        self.of_expt_tp = who(bool(self.of_ep), groups.expt_tp)
        self.of_shards = who(bool(self.of_tp), groups.pp)
        self.of_expert_shards = who(bool(self.of_expt_tp), groups.pp)


def who(needs: bool, group: dist.ProcessGroup) -> Ranks:
    """The ranks of a group that need something."""
    told = [needs] * group.size()
    if group.size() > 1:
        dist.all_gather_object(told, needs, group=group)
    return [rank for rank, each in enumerate(told) if each]


def hand_out(tensor: Tensor, source: int, group: dist.ProcessGroup, to: Ranks) -> None:
    """Rank `source`'s to the ranks `to` of a group, into their `tensor`."""
    if len(to) == group.size() > 1:
        dist.broadcast(tensor, group=group, group_src=source)
        return
    for rank in to:
        if rank == source:
            continue
        if group.rank() == source:
            dist.send(tensor, group=group, group_dst=rank)
        elif group.rank() == rank:
            dist.recv(tensor, group=group, group_src=source)


def gather(shard: Tensor, group: dist.ProcessGroup, to: Ranks) -> list[Tensor] | None:
    """The shards of every rank of a group, on the ranks `to` of it; elsewhere None, or the same."""
    if not to:
        return None
    if group.size() == 1:
        return [shard]
    shard = shard.contiguous()
    into = [torch.empty_like(shard) for _ in range(group.size())] if len(to) > 1 or to == [group.rank()] else None
    if len(to) > 1:
        dist.all_gather(into, shard, group=group)
    else:
        dist.gather(shard, into, group=group, group_dst=to[0])
    return into
