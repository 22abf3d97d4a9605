"""Layers of transformers whose small operations are one of torch's: on a GPU, one launch where there were eight."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import rms_norm


def fuse(model: nn.Module) -> None:
    """RMSNorm by torch's own. In float32 the same bits; in bf16 it rounds once, at the end, as the trainer's does."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_norm, module)


def _norm(module: nn.Module, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, (hidden.shape[-1],), module.weight, module.variance_epsilon)
