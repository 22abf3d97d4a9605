"""What a rank holds of a model, by arithmetic: for layouts that are compared before one is built."""

from __future__ import annotations

from megatron_gopd.config import schema
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.decode import expert_parameters, parameters
from megatron_gopd.plan.dry_run import Held
from megatron_gopd.plan.placement import ITEM


def share(architecture: Architecture, settings: schema.Model, world: int, *, optimizer: str | None) -> Held:
    """Of the fullest pipeline stage, the last or the first, without padding.

    optimizer: adam or sgd, of a model that is trained; None: frozen.
    """
    a, layout = architecture, settings.layout
    vocabulary = a.vocab_size * a.hidden_size
    ends = vocabulary * (1 if a.tied or layout.pp > 1 else 2)
    dense = parameters(a) - expert_parameters(a) - vocabulary * (1 if a.tied else 2)
    dense = (dense / layout.pp + ends) / layout.tp
    experts = expert_parameters(a) / (layout.ep * layout.etp * layout.pp)
    held = int(dense + experts)
    weights = held * ITEM[settings.dtype]
    if optimizer is None:
        return Held(held, weights)
    ranks = len(layout.span(world, "student"))
    replicas = ranks // (layout.tp * layout.pp) if optimizer == "adam" else 1
    expert_replicas = ranks // (layout.etp * layout.ep * layout.pp) if optimizer == "adam" else 1
    sharded = int(dense / replicas + experts / expert_replicas)
    masters = 4 * sharded if settings.dtype == "bfloat16" else 0
    return Held(held, weights, 4 * held, masters, 8 * sharded if optimizer == "adam" else 0)
