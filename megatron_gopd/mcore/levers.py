"""Memory levers left at `auto`: what saves a GPU's memory is used on a GPU, and costs nothing elsewhere."""

from __future__ import annotations

from typing import TypeVar

import torch

from megatron_gopd.config import schema

Role = TypeVar("Role", bound=schema.Model)


def settle(settings: Role, *, gpu: bool | None = None) -> Role:
    """A role's settings with every `auto` decided, for a GPU or a CPU (default: whether this machine has a GPU)."""
    gpu = torch.cuda.is_available() if gpu is None else gpu
    chosen = {"offload": gpu, "recompute": "full" if gpu else "none", "overlap_communication": gpu}
    return settings.model_copy(update={key: value for key, value in chosen.items() if _is_open(settings, key)})


def _is_open(settings: schema.Model, key: str) -> bool:
    return getattr(settings, key, None) == "auto"
