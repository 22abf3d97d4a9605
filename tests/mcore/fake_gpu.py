"""A student's update and a scorer's pass as a machine with a GPU runs them, on tensors of a GPU that is not there.

    LD_PRELOAD=cuda_guard.so python fake_gpu.py HF_FOLDER LAYOUT DTYPE

Fake tensors hold no values, but know where they would be, and refuse to meet one of another device. Prints JSON: which
tensors of the student and the teacher are elsewhere, and where what they computed is.
"""

from __future__ import annotations

import contextlib
import json
import sys
from unittest import mock

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS, EXPERTS, CHOSEN = 64, 8, 2
EVENLY = TOKENS * CHOSEN // EXPERTS  # tokens of an expert


class HostIsReal(TorchDispatchMode):
    """What no tensor of the GPU takes part in is computed: token ids and lengths steer the program."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return answer(args[0].dtype)
        if func.name().startswith("aten::index") and isinstance(args[0], FakeTensor) and isinstance(args[1], list):
            args = (args[0], [place for index in args[1] for place in by_number(index)], *args[2:])
        if func.namespace == "c10d" and "coalesced" in func.name():  # NCCL's, which fake tensors do not know
            return FakeWork().boxed()
        if any(isinstance(leaf, FakeTensor) or names_gpu(leaf) for leaf in leaves):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def by_number(index: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Of a mask, one place in the stead of those where it is true, which nobody knows."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [torch.zeros(1, dtype=torch.int64, device=index.device)] * index.dim()


def names_gpu(leaf) -> bool:
    return isinstance(leaf, torch.device) and leaf.type == "cuda"


def answer(dtype: torch.dtype) -> bool | int | float:
    """What is asked of the GPU: no fault is found, norms are 1, and every expert gets as many tokens."""
    return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else EVENLY


class Idle:
    """A stream or an event of nothing."""

    def __init__(self, *_, **__):
        pass

    def __getattr__(self, name):
        return lambda *_, **__: Idle()


def pretend() -> None:
    """torch says that there is one GPU, of sm_90. For the life of this process."""
    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count, cuda.current_device = lambda: 1, lambda: 0
    cuda.get_device_capability, cuda.get_device_name = lambda *_: (9, 0), lambda *_: "a GPU"
    cuda.Stream = cuda.Event = Idle
    cuda.current_stream, cuda.stream = lambda *_: Idle(), lambda *_: contextlib.nullcontext()
    cuda.synchronize = cuda.empty_cache = lambda *_: None
    cuda.random.get_rng_state = lambda **_: torch.get_rng_state()  # of recomputed layers, which draw nothing
    FakeTensorMode.avoid_device_init = True  # or it makes a real tensor there first
    from megatron_gopd.mcore import cpu_seam

    cpu_seam._stub_triton_kernels()


def even_routing(preprocess):
    """In the place of what the router would say, which has no values."""

    def with_even(self, hidden_states, routing_map, probs):
        chosen = torch.arange(TOKENS, device=routing_map.device)[:, None] * CHOSEN
        chosen = (chosen + torch.arange(CHOSEN, device=routing_map.device)) % EXPERTS
        return preprocess(self, hidden_states, torch.zeros_like(routing_map).scatter_(1, chosen, True), probs)

    return with_even


@contextlib.contextmanager
def on_a_gpu(world: int):
    from megatron.core import tensor_parallel
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher as Dispatcher

    from megatron_gopd.kernels import head
    from megatron_gopd.kernels.torch_backend import TorchBackend
    from megatron_gopd.plan import seams
    from megatron_gopd.plan.ledger import Ledger
    from megatron_gopd.policies import distribution_portion, hidden_scorers

    preprocess = Dispatcher.dispatch_preprocess
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    with (
        seams.values_answered(Ledger()),
        mock.patch.object(head, "backend_for", lambda _: TorchBackend()),
        mock.patch.object(distribution_portion, "fetch", fetched),
        mock.patch.object(hidden_scorers, "shared_ids", lambda _: 100),
        mock.patch.object(tensor_parallel, "model_parallel_cuda_manual_seed", lambda *_, **__: None),
        mock.patch.object(random, "_set_cuda_rng_state", lambda *_, **__: None),
        mock.patch.object(random.CudaRNGStatesTracker, "fork", lambda *_: contextlib.nullcontext()),
        mock.patch.object(Dispatcher, "dispatch_preprocess", even_routing(preprocess)),
        FakeTensorMode(allow_non_fake_inputs=True),
        HostIsReal(),
    ):
        yield


def fetched(held, wanted: torch.Tensor, tokens: int) -> torch.Tensor:
    """What other ranks would send, in host memory."""
    return held.values.new_zeros(len(wanted), held.values.shape[1])


def judge_whole(student, config, batch, loss_of) -> None:
    """An update by the exact gradient, with a reference and a clamp."""
    from megatron_gopd.policies.hidden_scorers import HiddenScorers

    algorithm = {"gradient": "exact", "lambda": 1.25, "clamp": 1.0}
    exact = type(config).model_validate(config.model_dump(by_alias=True) | {"algorithm": algorithm})
    scorers = HiddenScorers(exact)
    scorers.score(batch)
    student.update(batch, loss_of(exact.algorithm), scorers.payload)


def main(folder: str, layout: str, dtype: str) -> dict:
    import numpy as np

    from megatron_gopd.config import Config, Layout
    from megatron_gopd.data.trajectory import Prompt, Trajectory
    from megatron_gopd.objective import gopd_loss, loss_of

    asked = Layout.parse(layout)
    role = {"model": folder, "dtype": dtype, "layout": asked.model_dump(), "offload": False}
    config = Config.model_validate(
        {
            "run": {"name": "fake", "steps": 1},
            "student": role,
            "teachers": {"t": role | {"prompt": {"suffix": "!"}}},
            "data": {"train": "none.jsonl", "batch_size": 2},
            "training": {"max_tokens_per_micro_batch": TOKENS, "lm_head_gib": 0.5},
        }
    )
    with on_a_gpu(asked.tp * asked.cp):
        from megatron_gopd.mcore.optimizer import optimizer_tensors
        from megatron_gopd.policies.scorers import Scorers
        from megatron_gopd.policies.student import Student

        student, scorers = Student(config), Scorers(config)
        prompt = Prompt("p", [], None, "t", [1, 2, 3], [1, 2, 3], [1, 2, 3])
        batch = []
        for length in (12, 48):
            scores = np.zeros(length, dtype=np.float32)
            batch.append(Trajectory(prompt, 0, np.full(length, 4, np.int32), scores, "stop", teacher_logprobs=scores))
        scorers.score(batch)
        student.update(batch, gopd_loss(1.0, 5.0))
        judge_whole(student, config, batch, loss_of)
        with scorers.teacher("t") as teacher:
            held = [*student.model.module.state_dict().items(), *teacher.module.state_dict().items()]
        held += [("optimizer", tensor) for tensor in optimizer_tensors(student._optimizer)]
        held += [(f"main_grad of {name}", p.main_grad) for name, p in student.model.module.named_parameters()]
        found = [(name, tensor.device.type) for name, tensor in held if tensor is not None]
        return {"tensors": len(found), "elsewhere": [name for name, device in found if device != "cuda"]}


if __name__ == "__main__":
    pretend()
    print(json.dumps(main(*sys.argv[1:])))
