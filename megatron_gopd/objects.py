"""Objects on their way between ranks: numpy arrays in them as they lie in memory, the rest pickled.

torch's object collectives pickle the arrays, too, and copy what they carry five times on the way.
"""

from __future__ import annotations

import pickle
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

Value = TypeVar("Value")
Head = tuple[bytes, list[int]]  # the pickle, and the bytes of each array that it leaves out
ALIGNED = 64  # bytes: where an array may begin, whatever its numbers are


def broadcast(value: Value, *, source: int = 0, group: dist.ProcessGroup | None = None) -> Value:
    """The `value` of rank `source` of `group`, on all ranks of it (default: of the job). Collective.

    A group that carries nothing in host memory (NCCL alone) takes values without arrays only.
    """
    sends = dist.get_rank(group) == source
    head, arrays = packed(value) if sends else (None, None)
    told = [head]
    dist.broadcast_object_list(told, group=group, group_src=source)
    size = int(_starts(told[0])[-1])
    if size:
        arrays = arrays if sends else np.empty(size, dtype=np.uint8)
        dist.broadcast(torch.from_numpy(arrays), group=group, group_src=source)
    return value if sends else _unpacked(told[0], arrays)


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


def _unpacked(head: Head, arrays: np.ndarray | None) -> object:
    """The arrays of the result are views of `arrays`."""
    pickled, sizes = head
    views = [arrays[start : start + size] for start, size in zip(_starts(head), sizes, strict=False)]
    return pickle.loads(pickled, buffers=views)


def _starts(head: Head) -> np.ndarray:
    """[arrays + 1] where each begins, and where the last one ends."""
    return np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in head[1])])
