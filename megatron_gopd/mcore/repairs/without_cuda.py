"""Repairs that only a machine without CUDA needs."""

from __future__ import annotations

import contextlib
import functools

import torch
import torch.distributed as dist


# ---------------------------------------------------------------- type names: "torch.cuda.FloatTensor"
@contextlib.contextmanager
def _cuda_type_names():
    """Let `param.type()` answer `torch.cuda.*Tensor`, by which Megatron sorts parameters."""
    real = torch.Tensor.type

    def answer(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        return out.replace("torch.", "torch.cuda.", 1) if isinstance(out, str) else out

    torch.Tensor.type = answer
    try:
        yield
    finally:
        torch.Tensor.type = real


def _under_cuda_type_names(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        with _cuda_type_names():
            return function(*args, **kwargs)

    return wrapper


def _name_types_in_optimizer(module) -> None:
    cls = module.Float16OptimizerWithFloat16Params
    cls.__init__ = _under_cuda_type_names(cls.__init__)


def _name_types_in_distributed_optimizer(module) -> None:
    cls = module.DistributedOptimizer
    build = cls.__dict__["_build_model_and_main_param_groups"].__func__
    cls._build_model_and_main_param_groups = classmethod(_under_cuda_type_names(build))
    for name in ("_copy_main_params_to_model_params", "_copy_model_params_to_main_params"):
        setattr(cls, name, _under_cuda_type_names(getattr(cls, name)))


def _name_types_in_clip_grads(module) -> None:
    for name in ("get_grad_norm_fp32", "clip_grad_by_total_norm_fp32", "count_zeros_fp32"):
        setattr(module, name, _under_cuda_type_names(getattr(module, name)))


def _cpu_random_state(module) -> None:
    """The tensor-parallel RNG tracker keeps the CPU generator's state where there is no CUDA generator."""
    module._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    module._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


# ---------------------------------------------------------------- gloo
def _split_sizes_are_on_the_cpu(module) -> None:
    """On CUDA the split sizes of all_to_all are copied over as numpy; here they only need the numpy part."""

    def maybe_move_tensor_to_cpu(tensor, as_numpy=False, record_stream=False):
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    module.maybe_move_tensor_to_cpu = maybe_move_tensor_to_cpu


def _uneven_gathers_by_padding(module) -> None:
    """gloo gathers and scatters equal sizes only; experts under tensor parallelism ask for unequal ones."""
    gather, scatter = module._gather_along_first_dim, module._reduce_scatter_along_first_dim

    def padded_gather(x, group, output_split_sizes=None, use_global_buffer=False):
        if output_split_sizes is None or group.size() == 1:
            return gather(x, group, output_split_sizes, use_global_buffer)
        sizes = [int(size) for size in output_split_sizes]
        padded = x.new_zeros((max(sizes), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def summed_scatter(x, group, input_split_sizes=None, use_global_buffer=False):
        if input_split_sizes is None or group.size() == 1:
            return scatter(x, group, input_split_sizes, use_global_buffer)
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total.split([int(size) for size in input_split_sizes])[group.rank()].contiguous()

    module._gather_along_first_dim, module._reduce_scatter_along_first_dim = padded_gather, summed_scatter


REPAIRS = {
    "megatron.core.tensor_parallel.random": [_cpu_random_state],
    "megatron.core.optimizer.optimizer": [_name_types_in_optimizer],
    "megatron.core.optimizer.distrib_optimizer": [_name_types_in_distributed_optimizer],
    "megatron.core.optimizer.clip_grads": [_name_types_in_clip_grads],
    "megatron.core.transformer.moe.moe_utils": [_split_sizes_are_on_the_cpu],
    "megatron.core.tensor_parallel.mappings": [_uneven_gathers_by_padding],
}
