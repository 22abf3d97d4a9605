"""What a rank computes, sends and holds, counted operation by operation."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class Collective(NamedTuple):
    """One kind of message of this rank."""

    operation: str  # all_reduce, all_gather, reduce_scatter, all_to_all, broadcast, send, receive
    ranks: tuple[int, ...]  # of its group
    bytes: int  # of the larger side, this rank's input or output


class Gemm(NamedTuple):
    """A matrix product [m, k] x [k, n], `batch` times."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n


@dataclass
class Counts:
    """Of some stretch of a program, on one rank."""

    gemms: Counter[Gemm] = field(default_factory=Counter)
    attention_flops: Counter[str] = field(default_factory=Counter)  # forward, backward; causal: half of the square
    moved_bytes: int = 0  # read and written by every other operation, one by one
    operations: int = 0
    collectives: Counter[Collective] = field(default_factory=Counter)
    peak_bytes: int = 0  # allocated at once, beyond what was held when the stretch began

    @property
    def gemm_flops(self) -> int:
        return sum(gemm.flops * count for gemm, count in self.gemms.items())

    @property
    def flops(self) -> int:
        return self.gemm_flops + sum(self.attention_flops.values())


class Ledger(TorchDispatchMode):
    """Sees every operation on fake tensors, or, on real ranks, on all tensors."""

    def __init__(self):
        super().__init__()
        self.counts = Counts()
        self.live_bytes = 0
        self._base = 0
        self._seen: set[int] = set()

    @contextlib.contextmanager
    def stretch(self) -> Iterator[Counts]:
        """Counts of what happens within the block."""
        before, base = self.counts, self._base
        self.counts, self._base = Counts(), self.live_bytes
        try:
            yield self.counts
        finally:
            self.counts, self._base = before, base

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self._count_collective(func, args)
            return out
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        for tensor in tensors:
            self._hold(tensor)
        packet = func.overloadpacket
        if packet in _GEMMS:
            self.gemm(_GEMMS[packet](*args))
        elif packet in _ATTENTION:
            self._count_attention(packet, args)
        elif tensors and not func.is_view:
            self.counts.operations += 1
            self.counts.moved_bytes += sum(map(_bytes, (*tensors, *_tensors(args))))
        return out

    def gemm(self, gemm: Gemm) -> None:
        """Count a product that is not done here."""
        self.counts.gemms[gemm] += 1
        self.counts.operations += 1

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live_bytes += size
        self.counts.peak_bytes = max(self.counts.peak_bytes, self.live_bytes - self._base)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= size

    def _count_attention(self, packet, args) -> None:
        backward, first = _ATTENTION[packet]
        query, key = args[first], args[first + 1]
        batch, heads, queries, width = query.shape
        keys = key.shape[2]
        causal = any(arg is True for arg in args)
        pairs = queries * keys / 2 if causal and queries == keys else queries * keys
        kind, products = ("backward", 5) if backward else ("forward", 2)
        self.counts.attention_flops[kind] += int(2 * products * batch * heads * pairs * width)
        self.counts.operations += 1

    def _count_collective(self, func, args) -> None:
        operation = _OPERATIONS.get(func.overloadpacket._qualified_op_name.removeprefix("c10d::"))
        if operation is None:
            return
        group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
        sides = [sum(map(_bytes, _tensors(arg))) for arg in args]
        ranks = tuple(dist.get_process_group_ranks(group))
        self.counts.collectives[Collective(operation, ranks, max(sides))] += 1


_OPERATIONS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "send": "send",
    "recv_": "receive",
}


def _tensors(arg) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(arg) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _mm(a: Tensor, b: Tensor, *_) -> Gemm:
    return Gemm(1, a.shape[0], a.shape[1], b.shape[1])


def _bmm(a: Tensor, b: Tensor, *_) -> Gemm:
    return Gemm(a.shape[0], a.shape[1], a.shape[2], b.shape[2])


_GEMMS = {
    aten.mm: _mm,
    aten.addmm: lambda _, a, b, *rest: _mm(a, b),
    aten.addmm_: lambda _, a, b, *rest: _mm(a, b),
    aten.bmm: _bmm,
    aten.baddbmm: lambda _, a, b, *rest: _bmm(a, b),
}

# operation -> (backward, which argument is the query)
_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: (False, 0),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (True, 1),
}
