"""What rollout.replay_routing leaves in host memory: the experts of every position, on every rank."""

from __future__ import annotations

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.data.routed_experts import dtype_of
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.workload import Workload


def routed_experts_bytes(config: Config, work: Workload, world: int) -> float:
    """Of a rank: those of the whole batch, as they came, and in int16 those of its own micro-batches."""
    if not config.rollout.replay_routing:
        return 0.0
    student, layout = Architecture.read(config.student.model), config.student.layout
    experts = student.experts
    chosen = float(work.lengths.sum()) * student.layers * experts.per_token
    replicas = len(layout.span(world, "student")) // (layout.tp * layout.pp)  # a context-parallel rank has its part
    return chosen * (dtype_of(experts.count).itemsize + np.dtype(np.int16).itemsize / replicas)
