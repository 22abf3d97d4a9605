"""FP8 through Transformer Engine: what it asks of a machine and a model, and weights that are held in it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_gopd.config import Layout, schema
from megatron_gopd.errors import UserError
from megatron_gopd.machine import have_te, te_problem
from megatron_gopd.mcore.architecture import Architecture

# of the operands of a GEMM on each rank, Transformer Engine's: tokens, which are padded, and features, which are not
TOKENS = {"delayed": 16, "tensorwise": 16, "mxfp8": 32, "blockwise": 128}
FEATURES = {"delayed": 16, "tensorwise": 16, "mxfp8": 32, "blockwise": 16}
_AVAILABLE = {"mxfp8": "is_mxfp8_available", "blockwise": "is_fp8_block_scaling_available"}


def check_fp8(fp8: schema.Fp8 | None, dtype: str, architecture: Architecture, layout: Layout, where: str) -> None:
    """What a configuration tells. Raises UserError: fp8 without bfloat16, or of a model whose sizes it cannot have."""
    if fp8 is None:
        return
    if dtype != "bfloat16":
        raise UserError(f"{where}: fp8 goes with dtype: bfloat16, not {dtype}")
    multiple = FEATURES[fp8.recipe]
    for what, size in _features(architecture, layout):
        if size % multiple:
            raise UserError(
                f"{where}: fp8.recipe {fp8.recipe} multiplies in blocks of {multiple} features, and the {what} on a "
                f"rank is {size}; choose a smaller tp, or remove the key fp8"
            )


def check_fp8_here(fp8: schema.Fp8 | None, where: str) -> None:
    """What a machine tells. Raises UserError: no GPU, no Transformer Engine, a recipe that the GPU lacks."""
    if fp8 is None:
        return
    if not have_te():
        raise UserError(
            f"{where}: fp8 needs a GPU and Transformer Engine: {te_problem()}; on a machine with a GPU make install "
            f"brings it, elsewhere remove the key fp8"
        )
    problem = recipe_problem(fp8.recipe)
    if problem:
        raise UserError(
            f"{where}: fp8.recipe {fp8.recipe} does not run on this GPU, {torch.cuda.get_device_name()}: {problem} "
            f"Choose another recipe, or remove the key fp8"
        )


def recipe_problem(recipe: str) -> str | None:
    """Why Transformer Engine says that this GPU cannot have the recipe; None where it can."""
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    available, reason = getattr(FP8GlobalStateManager, _AVAILABLE.get(recipe, "is_fp8_available"))()
    return None if available else reason


def _features(architecture: Architecture, layout: Layout) -> Iterator[tuple[str, int]]:
    """(what, how many) of both sides of every GEMM of a layer, on one rank."""
    heads, groups, size = architecture.heads, architecture.groups, architecture.head_dim
    yield "hidden size", architecture.hidden_size
    yield "width of queries, keys and values", (heads + 2 * groups) * size // layout.tp
    yield "width of the heads", heads * size // layout.tp
    if architecture.experts:
        yield "feed-forward size of an expert", architecture.experts.ffn_size // layout.etp
    else:
        yield "feed-forward size", architecture.ffn_size // layout.tp


def start_master_from(param: Tensor, value: Tensor) -> None:
    """Where the master weight of a parameter held in FP8 starts: from what the parameter was filled with, unrounded.

    Transformer Engine keeps what the parameter was made of for that, which is uninitialised memory.
    """
    if hasattr(param, "get_high_precision_init_val"):
        param.get_high_precision_init_val().copy_(value)


def plain(param: Tensor) -> Tensor:
    """The parameter's values as an ordinary tensor, which collectives take."""
    return param.dequantize() if is_quantised(param) else param.detach()


def is_quantised(tensor: Tensor) -> bool:
    """Whether it is one of Transformer Engine's tensors, whose values lie in other tensors."""
    return hasattr(tensor, "get_data_tensors")


def held_by(tensor: Tensor) -> list[Tensor]:
    """The ordinary tensors that hold its values (of a quantised one without its few scales)."""
    if not is_quantised(tensor):
        return [tensor]
    data = tensor.get_data_tensors()
    return [part for part in (data if isinstance(data, tuple) else (data,)) if part is not None]
