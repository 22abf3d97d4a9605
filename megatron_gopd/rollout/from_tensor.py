"""Weights by reference, to servers on the GPUs of ranks; by value where there is no GPU."""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from megatron_gopd.ranks import on_first
from megatron_gopd.rollout.updates import InBuckets, Tensors, in_buckets
from megatron_gopd.servers.server import Server

DEVICE = 6  # where reduce_tensor has a GPU tensor's device, among what rebuild_cuda_tensor is given
Texts = list[list[str]]


class FromTensor(InBuckets):
    """Tensors by CUDA IPC from the rank that shares a server's GPU; in the request itself on a CPU.

    Sharing host memory between the two processes is not relied on: a server that dies would leave it behind.
    """

    def send(self, buckets: Iterator[tuple[Texts, bool]], servers: list[Server], version: int) -> None:
        """They come as `pickled` makes them, on all ranks: one while servers read the one before, the first before they
        are paused."""
        ahead = next(buckets, None)
        with self.opened(servers):
            while ahead:
                bucket, is_last = ahead
                about = self.about(version, is_last=is_last)
                bodies = [{"serialized_named_tensors": texts} | about for texts in bucket]
                read = self.begin_post(servers, "/update_weights_from_tensor", bodies)
                ahead = next(buckets, None)
                self.wait(read)


def pickled(
    tensors: Tensors, homes: list[list[int]], size: int, wanted: Callable[[], bool]
) -> Iterator[tuple[Texts, bool]]:
    """Buckets as servers read them: [server][its tensor-parallel rank], complete on rank 0; and whether it is the last.

    Collective. `homes` are the ranks that make them, [server][tensor-parallel rank]. Each has a text of its own, since
    torch counts who has opened a GPU's tensor, and keeps the memory for as long; so once rank 0 finds that they are not
    `wanted` any more, after a failure, none is made.
    """
    places = [[(server, place) for place in range(len(ranks))] for server, ranks in enumerate(homes)]
    makers = {each: homes[each[0]][each[1]] for of_server in places for each in of_server}
    for bucket, is_last in in_buckets(tensors, size):
        if not on_first(wanted):
            continue
        mine = {place: _text(bucket) for place, rank in makers.items() if rank == dist.get_rank()}
        texts = mine if set(makers.values()) == {0} else _on_first(mine)
        yield [[texts.get(each) for each in of_server] for of_server in places], is_last


def _on_first(mine: dict) -> dict:
    """On rank 0, what all ranks have. Collective."""
    found = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, found, dst=0)
    return {place: text for texts in found or () for place, text in texts.items()}


def _text(bucket: list[tuple[str, Tensor]]) -> str:
    packed = io.BytesIO()
    on_gpu = any(tensor.is_cuda for _, tensor in bucket)
    (_ByReference if on_gpu else _ByValue)(packed, 4).dump(bucket)
    return base64.b64encode(packed.getbuffer()).decode()


class _ByReference(ForkingPickler):
    """GPUs by their UUID: a number counts those that this process sees, and the server sees others.

    SGLang looks a UUID up among its own (sglang/srt/utils/patch_torch.py).
    """

    def reducer_override(self, value):
        if not (isinstance(value, Tensor) and value.is_cuda):
            return NotImplemented
        rebuild, given = reduce_tensor(value)
        uuid = str(torch.cuda.get_device_properties(value.device).uuid)
        return rebuild, (*given[:DEVICE], uuid, *given[DEVICE + 1 :])


class _ByValue(pickle._Pickler):
    """Tensors with their bytes. Megatron replaces torch's loader of them by its own, which SGLang does not admit."""

    def reducer_override(self, value):
        return "_load_from_bytes" if value is torch.storage._load_from_bytes else NotImplemented

    def save_global(self, value, name=None):
        if name != "_load_from_bytes":
            super().save_global(value, name)
            return
        self.save("torch.storage")
        self.save(name)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(value)
