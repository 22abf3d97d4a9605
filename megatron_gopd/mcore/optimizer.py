"""Megatron's data-parallel wrapper and distributed optimizer for one model."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from torch import Tensor

from megatron_gopd.config import schema
from megatron_gopd.mcore.model import Model
from megatron_gopd.mcore.repairs import among


def wrap_for_training(model: Model, settings: schema.Optimizer, overlap: bool = False) -> DistributedDataParallel:
    """Gradient buffers in float32, SUMMED over data-parallel ranks: the token weights already are global means."""
    model.config.finalize_model_grads_func = _sum_gradients
    distributed = DistributedDataParallelConfig(
        use_distributed_optimizer=_is_distributed(settings),
        grad_reduce_in_fp32=True,
        fp8_param_gather=model.config.fp8_param,  # or weights held in FP8 would never see what their masters learn
        overlap_grad_reduce=overlap,  # and not the gathering of weights: they leave for the engine right after a step
    )
    wrapped = DistributedDataParallel(model.config, distributed, model.module, pg_collection=model.groups)
    model.config.no_sync_func = wrapped.no_sync if overlap else None  # reduce with the last micro-batch only
    return wrapped


@contextlib.contextmanager
def more_follows(model: Model, wrapped: DistributedDataParallel) -> Iterator[None]:
    """Gradients of the runs within are summed on this rank only: another run of the same step follows."""
    config = model.config
    usual = config.finalize_model_grads_func, config.no_sync_func
    config.finalize_model_grads_func, config.no_sync_func = None, None
    try:
        with wrapped.no_sync():
            yield
    finally:
        config.finalize_model_grads_func, config.no_sync_func = usual


def announce_head(model: Model) -> None:
    """Before a backward pass that overlaps reductions: the LM head's gradient goes to its main_grad by itself.

    The wrapper counts a weight's gradient as complete when autograd hands one over; so autograd finds one, of one
    number in memory, and the wrapper leaves it out of the sum. A weight that is the embedding, too, gets one anyway.
    """
    weight = model.lm_head()
    if not (model.module.share_embeddings_and_output_weights and model.module.pre_process):
        weight.grad, weight.grad_added_to_main_grad = weight.new_zeros(()).expand_as(weight), True


def build_optimizer(model: Model, wrapped: DistributedDataParallel, settings: schema.Optimizer) -> MegatronOptimizer:
    """AdamW, sharded over data-parallel ranks, or SGD; float32 master weights, clipping by global norm."""
    config = OptimizerConfig(
        optimizer=settings.type,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        sgd_momentum=0.0,
        clip_grad=settings.clip_grad,
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
        fp8_recipe=model.config.fp8_recipe if model.config.fp8_param else None,
        use_distributed_optimizer=_is_distributed(settings),
    )
    with among(model.groups.intra_dist_opt):
        built = get_megatron_optimizer(config, [wrapped], use_gloo_process_groups=False, pg_collection=model.groups)
    for part in _parts(built):
        part.init_state_fn = part.init_state_fn or (lambda *_: None)  # SGD's: Megatron calls it before a load
    return built


def _is_distributed(settings: schema.Optimizer) -> bool:
    """Megatron's distributed optimizer shards Adam's state, and silently skips the step of any other."""
    return settings.type == "adam"


def optimizer_tensors(optimizer: MegatronOptimizer) -> Iterator[Tensor]:
    """What the optimizer keeps beside the model's own weights: moments, and float32 master weights of a bf16 model."""
    for part in _parts(optimizer):
        for state in part.optimizer.state.values():
            yield from (value for value in state.values() if torch.is_tensor(value) and value.dim())
        masters = getattr(part, "shard_fp32_from_float16_groups", None) or getattr(part, "fp32_from_float16_groups", [])
        yield from (param for group in masters for param in group if param is not None)


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def learning_rate(step: int, steps: int, settings: schema.Optimizer) -> float:
    """The rate of step `step` (from 1) of `steps`: linear warm-up, then constant, or down to min_lr after the last."""
    if step <= settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    done = (step - 1 - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]
    return settings.min_lr + (settings.lr - settings.min_lr) * left


def _sum_gradients(modules, num_tokens=None, **kwargs) -> None:
    """finalize_model_grads without its division by the token count."""
    finalize_model_grads(modules, None, **kwargs)
