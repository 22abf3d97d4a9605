"""The one place where Megatron-Core learns to run without CUDA.

Megatron names the CUDA device in calls (`torch.cuda.current_device()`), in literals (`device="cuda"`) and in type
names (`torch.cuda.FloatTensor`). `install` gives each megatron.core module, right after its import, a facade of
`torch` in which the first two mean the CPU; `repairs` mends the third, and a few bugs. The real torch stays as it is
for everybody else, but for `Tensor.cuda()`, which could only raise. With CUDA there is no facade, only repairs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.util
import os
import sys
import types
import warnings

import torch

_PREFIX = "megatron.core"


def install() -> None:
    """Hook the import of megatron.core; call before it is imported. Calling again changes nothing."""
    if any(isinstance(finder, _MegatronFinder) for finder in sys.meta_path):
        return
    if any(name.startswith(_PREFIX) for name in sys.modules):
        raise RuntimeError("megatron.core was imported before megatron_gopd.mcore, which must prepare it")
    facade = None
    if not torch.cuda.is_available():
        # megatron.core.jit compiles at import: on a CPU that is a C++ build per rank
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        torch.Tensor.cuda = lambda self, *args, **kwargs: self
        _stub_triton_kernels()
        facade = _torch_facade()
    sys.meta_path.insert(0, _MegatronFinder(facade))
    _quiet()


def _quiet() -> None:
    """Megatron's imports warn of optional packages and of torch names to come: a screen of noise on every rank."""
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.(c10d_logger|checkpoint)")


class _MegatronFinder(importlib.abc.MetaPathFinder):
    """Lets the ordinary finders find a megatron.core module, and adopts it once it has run."""

    def __init__(self, facade: types.ModuleType | None):
        self.facade = facade
        self._searching: set[str] = set()

    def find_spec(self, name, path=None, target=None):
        if not name.startswith(_PREFIX) or name in self._searching:
            return None
        self._searching.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching.discard(name)
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self._adopt(module)

        spec.loader.exec_module = exec_module
        return spec

    def _adopt(self, module) -> None:
        from megatron_gopd.mcore import repairs

        if self.facade is not None and module.__dict__.get("torch") is torch:
            module.torch = self.facade
        repairs.apply(module, cpu=self.facade is not None)


# ---------------------------------------------------------------- the facade of torch
_FACTORIES = (
    "zeros ones empty full tensor arange rand randn randint eye linspace as_tensor "
    "zeros_like ones_like empty_like full_like rand_like randn_like empty_strided"
).split()


def _torch_facade() -> types.ModuleType:
    facade = types.ModuleType("torch_without_cuda")
    facade.__getattr__ = functools.partial(getattr, torch)
    for name in _FACTORIES:
        setattr(facade, name, _on_cpu(getattr(torch, name)))
    facade.cuda = _cuda_facade()
    facade.device = _Device("device", (), {})
    facade.autocast = lambda kind, *args, **kwargs: torch.autocast("cpu" if kind == "cuda" else kind, *args, **kwargs)
    return facade


def _on_cpu(factory):
    @functools.wraps(factory)
    def wrapper(*args, **kwargs):
        if _names_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return wrapper


def _names_cuda(device) -> bool:
    return str(device).split(":")[0] == "cuda" if isinstance(device, str | torch.device) else False


class _Device(type):
    """torch.device("cuda") is the CPU, and isinstance(x, torch.device) still holds."""

    def __call__(cls, device="cpu", *index):
        return torch.device("cpu") if isinstance(device, int) or _names_cuda(device) else torch.device(device, *index)

    def __instancecheck__(cls, instance):
        return isinstance(instance, torch.device)


class _Stream:
    """Stands in for torch.cuda.Stream and Event: the CPU runs in order, so waiting is done already."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None

    def record_event(self, event=None):
        return event or _Stream()

    def query(self):
        return True

    def elapsed_time(self, other):
        return 0.0

    @staticmethod
    def priority_range():
        return (0, 0)


def _cuda_facade() -> types.ModuleType:
    cuda = types.ModuleType("torch_without_cuda.cuda")
    cuda.__getattr__ = functools.partial(getattr, torch.cuda)
    cpu, stream = torch.device("cpu"), _Stream()
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *args, **kwargs: None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        setattr(cuda, name, lambda *args, **kwargs: 0)
    cuda.current_device, cuda.device_count = lambda: cpu, lambda: 1
    cuda.Stream = cuda.Event = _Stream
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: stream
    cuda.stream = lambda *args, **kwargs: contextlib.nullcontext()
    cuda.is_current_stream_capturing = lambda: False
    cuda.get_device_capability = lambda *args, **kwargs: (0, 0)
    cuda.manual_seed = cuda.manual_seed_all = torch.manual_seed
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    cuda.random = types.SimpleNamespace(get_rng_state=cuda.get_rng_state, set_rng_state=cuda.set_rng_state)
    cuda.nvtx = types.SimpleNamespace(range_push=lambda *args: None, range_pop=lambda: None)
    return cuda


def _stub_triton_kernels() -> None:
    """moe/ops/paged_stash.py imports triton unguarded; its kernels run only with moe_paged_stash."""
    if importlib.util.find_spec("triton") is not None:
        return
    stub = types.ModuleType("megatron.core.transformer.moe.ops.paged_stash")
    stub.GLOBAL_BLOCK_SIZE = 1024
    stub.paged_stash_copy_kernel = stub.paged_stash_pop_kernel = None
    sys.modules[stub.__name__] = stub
