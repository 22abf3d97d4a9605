"""What rollout.replay_routing leaves in host memory: the experts of every position, where they came and are read."""

from __future__ import annotations

import math

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.data.routed_experts import dtype_of
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.workload import Workload


def routed_experts_bytes(config: Config, work: Workload, world: int, ranks_per_node: int) -> float:
    """Of the first node: as they came, those of the whole batch on rank 0, and on every rank those that any of the
    node computes; in int16 those of its own micro-batches."""
    if not config.rollout.replay_routing:
        return 0.0
    student, layout = Architecture.read(config.student.model), config.student.layout
    experts = student.experts
    chosen = float(work.lengths.sum()) * student.layers * experts.per_token
    parts = len(layout.span(world, "student")) // (layout.tp * layout.pp)  # a context-parallel rank has its own
    of_node = min(1.0, math.ceil(ranks_per_node / (layout.tp * layout.cp)) * layout.cp / parts)
    came = 1 + ranks_per_node * of_node
    return chosen * (dtype_of(experts.count).itemsize * came + np.dtype(np.int16).itemsize * ranks_per_node / parts)
