"""Memory levers left at `auto` where no plan of a run decided them (plan/levers.py): everything is resident."""

from __future__ import annotations

from typing import TypeVar

import torch

from megatron_gopd.config import schema

Role = TypeVar("Role", bound=schema.Model)
AUTO = "auto"


def settle(settings: Role) -> Role:
    """A role's settings with every `auto` decided: nothing goes to the host, nothing is computed again."""
    chosen = {"offload": False, "recompute": "none", "overlap_communication": torch.cuda.is_available()}
    return settings.model_copy(update={key: value for key, value in chosen.items() if is_open(settings, key)})


def is_open(settings: schema.Model, key: str) -> bool:
    """Whether the role has the lever, and nobody has set it."""
    return getattr(settings, key, None) == AUTO
