"""One process as rank r of a world of any size: process groups that send nothing, tensors that hold nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_gopd.plan import seams
from megatron_gopd.plan.ledger import Ledger

_ASKS_A_VALUE = torch.ops.aten._local_scalar_dense.default


@contextlib.contextmanager
def as_rank(rank: int, world: int) -> Iterator[Ledger]:
    """Within the block this process is rank `rank` of `world`, and what it computes is counted, not done.

    Every line of the job runs: models, wrappers, optimizers, schedules, kernels. Tensors of weights and activations
    have shapes only; small integer tensors (token ids, lengths, places) are real, as the control flow reads them.
    """
    ledger = Ledger()
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        with (
            seams.values_answered(ledger),
            FakeTensorMode(allow_non_fake_inputs=True),
            ledger,
            _Bookkeeping(),
        ):
            yield ledger
    finally:
        dist.destroy_process_group()


class _Bookkeeping(TorchDispatchMode):
    """Tells the values that steer a program from those it computes with: the former stay real."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here; torch's guard against it costs a fifth of the time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func is _ASKS_A_VALUE and isinstance(args[0], FakeTensor):
            return _answer(args[0].dtype)
        if func.namespace == "c10d" or any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if tensors or _makes_integers(func, kwargs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _answer(dtype: torch.dtype) -> bool | int | float:
    """What a tensor without values says when asked: no fault is found, and every scale and norm is 1."""
    return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _makes_integers(func, kwargs: dict) -> bool:
    dtype = kwargs.get("dtype")
    if dtype is None:
        return func.name().startswith("aten::arange")
    return not (dtype.is_floating_point or dtype.is_complex)
