"""Objects on their way between ranks: numpy arrays in them as they lie in memory, the rest pickled.

torch's object collectives pickle the arrays, too, and copy what they carry five times on the way. And gloo's broadcast
knows no nodes: it sends one copy after the other to the same.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist

from megatron_gopd.nodes import Nodes

Value = TypeVar("Value")
Head = tuple[bytes, list[int]]  # the pickle, and the bytes of each array that it leaves out
Leg = tuple[dist.ProcessGroup | None, int]  # of a broadcast: its group, and the rank there that sends
ALIGNED = 64  # bytes: where an array may begin, whatever its numbers are


@dataclass(frozen=True)
class Ways:
    """Between the ranks of several nodes, for what goes to all: one way into each node, and on from there."""

    nodes: Nodes
    across: dist.ProcessGroup | None  # of the first rank of each node; None: there is one node
    within: dist.ProcessGroup | None  # of the ranks of this node

    @classmethod
    def of(cls, nodes: Nodes) -> Self:
        """Collective."""
        if len(nodes.all) == 1:
            return cls(nodes, None, None)
        across = dist.new_group([node.first_rank for node in nodes.all], backend="gloo")
        within = [dist.new_group(node.ranks, backend="gloo") for node in nodes.all]  # every rank makes all
        return cls(nodes, across, within[nodes.all.index(nodes.here)])

    def legs(self, source: int) -> list[Leg]:
        """Those that this rank takes part in, in order, of a broadcast from `source`."""
        if self.across is None:
            return [(None, source)]
        here, home = self.nodes.here, next(node for node in self.nodes.all if source in node.ranks)
        across = [(self.across, self.nodes.all.index(home))] if self.nodes.acts else []
        within = [(self.within, here.ranks.index(source) if here is home else 0)]
        return within + across if here is home and source != home.first_rank else across + within


_of_jobs: WeakKeyDictionary[dist.ProcessGroup, Ways] = WeakKeyDictionary()


def broadcast(value: Value, *, source: int = 0, group: dist.ProcessGroup | None = None) -> Value:
    """The `value` of rank `source` of `group`, on all ranks of it (default: of the job). Collective.

    Of the job, one copy goes to each other node, and on from rank to rank there. A group that carries nothing in host
    memory (NCCL alone) takes values without arrays only.
    """
    sends = dist.get_rank(group) == source
    head, arrays = packed(value) if sends else (None, None)
    for leg in _ways().legs(source) if group is None else [(group, source)]:
        head, arrays = _carried(head, arrays, *leg)
    return value if sends else _unpacked(head, arrays)


def fetch(held: Sequence[Value], wanted: Iterable[int]) -> dict[int, Value]:
    """Of what rank 0 holds, by its numbers, what this rank or another of its node wants. Collective over the job.

    Each node gets what its ranks want once.
    """
    numbers = [*wanted]
    asked = [numbers] * dist.get_world_size()
    dist.all_gather_object(asked, numbers)
    ways = _ways()
    numbers = [sorted({number for rank in node.ranks for number in asked[rank]}) for node in ways.nodes.all]
    here = ways.nodes.all.index(ways.nodes.here)
    head, arrays = None, None
    if dist.get_rank() == 0:
        for place, of_node in enumerate(numbers[1:], 1):
            _send(*packed([held[number] for number in of_node]), ways.across, place)
        found = [held[number] for number in numbers[0]]
        head, arrays = packed(found)
    elif ways.nodes.acts:
        head, arrays = _received(ways.across, 0)
    head, arrays = _carried(head, arrays, ways.within, 0)
    found = found if dist.get_rank() == 0 else _unpacked(head, arrays)
    return dict(zip(numbers[here], found, strict=True))


def all_gather(value: Value) -> list[Value]:
    """The value of every rank of the job, on every rank. Collective; for values of about one size."""
    head, arrays = packed(value)
    heads: list[Head] = [None] * dist.get_world_size()
    dist.all_gather_object(heads, head)
    longest = max(int(_starts(each)[-1]) for each in heads)
    everywhere = np.empty(len(heads) * longest, dtype=np.uint8)
    if longest:
        mine = np.zeros(longest, dtype=np.uint8)
        mine[: len(arrays)] = arrays
        dist.all_gather_into_tensor(torch.from_numpy(everywhere), torch.from_numpy(mine))
    return [_unpacked(each, row) for each, row in zip(heads, everywhere.reshape(len(heads), longest), strict=True)]


def packed(value: object) -> tuple[Head, np.ndarray]:
    """A head, and the arrays of `value` end to end: [bytes] uint8."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    pieces = [np.frombuffer(buffer.raw(), dtype=np.uint8) for buffer in buffers]
    head = pickled, [len(piece) for piece in pieces]
    starts = _starts(head)
    arrays = np.empty(int(starts[-1]), dtype=np.uint8)
    for start, piece in zip(starts, pieces, strict=False):
        arrays[start : start + len(piece)] = piece
    return head, arrays


def _carried(
    head: Head | None, arrays: np.ndarray | None, group: dist.ProcessGroup | None, source: int
) -> tuple[Head, np.ndarray | None]:
    """What rank `source` of `group` holds: head, and arrays if it has any; the others hold None."""
    told = [head]
    dist.broadcast_object_list(told, group=group, group_src=source)
    size = int(_starts(told[0])[-1])
    if size:
        arrays = np.empty(size, dtype=np.uint8) if arrays is None else arrays
        dist.broadcast(torch.from_numpy(arrays), group=group, group_src=source)
    return told[0], arrays


def _send(head: Head, arrays: np.ndarray, group: dist.ProcessGroup, to: int) -> None:
    dist.send_object_list([head], group=group, group_dst=to)
    if len(arrays):
        dist.send(torch.from_numpy(arrays), group=group, group_dst=to)


def _received(group: dist.ProcessGroup, source: int) -> tuple[Head, np.ndarray]:
    told: list[Head] = [None]
    dist.recv_object_list(told, group=group, group_src=source)
    arrays = np.empty(int(_starts(told[0])[-1]), dtype=np.uint8)
    if len(arrays):
        dist.recv(torch.from_numpy(arrays), group=group, group_src=source)
    return told[0], arrays


def _ways() -> Ways:
    """Of the job. Collective at the first call."""
    if dist.group.WORLD not in _of_jobs:
        _of_jobs[dist.group.WORLD] = Ways.of(Nodes.of_job())
    return _of_jobs[dist.group.WORLD]


def _unpacked(head: Head, arrays: np.ndarray | None) -> object:
    """The arrays of the result are views of `arrays`."""
    pickled, sizes = head
    views = [arrays[start : start + size] for start, size in zip(_starts(head), sizes, strict=False)]
    return pickle.loads(pickled, buffers=views)


def _starts(head: Head) -> np.ndarray:
    """[arrays + 1] where each begins, and where the last one ends."""
    return np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in head[1])])
