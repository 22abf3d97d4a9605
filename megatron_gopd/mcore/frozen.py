"""A model that only scores: a teacher, a reference, or one that is looked at."""

from __future__ import annotations

from pathlib import Path

import torch

from megatron_gopd.config import Layout, schema
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import Model, build_model


@torch.no_grad()  # or weights held in FP8 would keep a transposed copy, and an unrounded one on the host, to learn from
def frozen_model(folder: str | Path, layout: Layout, dtype: str, *, fp8: schema.Fp8 | None = None) -> Model | None:
    """The model in `folder` with its weights; None outside its ranks. Collective over all ranks.

    Raises:
        UserError: a model, a layout or a precision that cannot be had; weights that are missing or damaged.
    """
    model = build_model(folder, layout, dtype, fp8=fp8)
    if model is not None:
        weights.load(model, folder)
        model.module.eval().requires_grad_(False)
    return model
