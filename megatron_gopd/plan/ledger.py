"""What a rank computes, sends and holds, counted operation by operation."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_gopd.plan.counts import Collective, Counts, Gemm

aten = torch.ops.aten


class Ledger(TorchDispatchMode):
    """Sees every operation on fake tensors; on real ranks, every collective."""

    def __init__(self):
        super().__init__()
        self.live_bytes = 0
        self.parts: dict[str, Counts] = {}
        self._counts, self._base = Counts(), 0
        self._seen: set[int] = set()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[Counts]:
        """What happens within the block is counted under `name`, and not under what surrounds it."""
        outer, base = self._counts, self._base
        self._counts = self.parts.setdefault(name, Counts())
        self._base = self.live_bytes
        try:
            yield self._counts
        finally:
            self._counts.kept_bytes += self.live_bytes - self._base
            self._counts, self._base = outer, base

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; torch's guard against it costs a fifth of the time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self._count_collective(func, args)
            return _one_by_one(func, args, kwargs or {})
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, FakeTensor)]
        if not tensors:
            return out
        for tensor in tensors:
            self._hold(tensor)
        packet = func.overloadpacket
        if packet in _GEMMS:
            self.gemm(_GEMMS[packet](*args))
        elif packet in _ATTENTION:
            self._count_attention(packet, args)
        elif not func.is_view:
            self._counts.moved_bytes += sum(map(_bytes, (*tensors, *_tensors(args))))
        return out

    def gemm(self, gemm: Gemm) -> None:
        """Count a product that is not done here."""
        self._counts.gemms[gemm] += 1

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live_bytes += size
        self._counts.peak_bytes = max(self._counts.peak_bytes, self.live_bytes - self._base)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= size

    def _count_attention(self, packet, args) -> None:
        """As a flash-attention kernel does it: two products forward; in the backward pass the first again, and four.

        All attention here is causal, its queries the last of the positions that the keys have.
        """
        first, products = _ATTENTION[packet]
        batch, heads, queries, width = args[first].shape
        keys = args[first + 1].shape[2]
        pairs = queries * (keys - queries / 2)
        self._counts.attention_flops += 2 * products * batch * heads * pairs * width

    def _count_collective(self, func, args) -> None:
        operation = _OPERATIONS.get(func.overloadpacket._qualified_op_name.removeprefix("c10d::"))
        if operation is None:
            return
        group = next(dist.ProcessGroup.unbox(arg) for arg in args if isinstance(arg, torch.ScriptObject))
        collective = Collective(operation, tuple(dist.get_process_group_ranks(group)))
        self._counts.collectives[collective] += 1
        self._counts.sent_bytes[collective] += max(sum(map(_bytes, _tensors(arg))) for arg in args)


def _one_by_one(func, args, kwargs):
    """Fake tensors know no coalesced collectives: single ones in their place."""
    single = _COALESCED.get(func.overloadpacket)
    if single is None or not isinstance(args[0][0], FakeTensor):
        return func(*args, **kwargs)
    outputs, inputs, *rest = args
    return [single(*pair, *rest) for pair in zip(outputs, inputs, strict=True)][-1][1]


_COALESCED = {
    torch.ops.c10d.reduce_scatter_tensor_coalesced_: torch.ops.c10d._reduce_scatter_base_,
    torch.ops.c10d.allgather_into_tensor_coalesced_: torch.ops.c10d._allgather_base_,
}
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

# operation -> (which argument is the query, products)
_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: (0, 2),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 5),
}
