"""Bytes in the host memory of a node."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.plan.dry_run import Held
from megatron_gopd.plan.exact import Payload
from megatron_gopd.plan.memory import OnRank
from megatron_gopd.plan.placement import Placement
from megatron_gopd.plan.roles import Role
from megatron_gopd.plan.routed_experts import routed_experts_bytes
from megatron_gopd.plan.supports import supports_bytes
from megatron_gopd.plan.workload import Workload


def host_bytes(
    config: Config,
    roles: list[Role],
    on: OnRank,
    where: Placement,
    work: Workload,
    ranks_per_node: int,
    payload: Payload | None,
) -> dict[str, float]:
    """Of one node: what its ranks offload, hidden states or supports of scorers, routed experts, weights on their way
    to servers, and a checkpoint on its way to the disk: the optimizer's state of a rank's part of the model, in
    float32, on every data-parallel rank."""
    student = on.held["student"] or Held(0, 0)
    moved = {"optimizer": (student.masters + student.moments) * ranks_per_node if config.student.offload else 0.0}
    frozen = [on.held[role.name] for role in roles[1:] if role.settings.offload]
    moved["scorers"] = sum(held.weights for held in frozen if held) * ranks_per_node
    moved["hidden states"] = payload.host * ranks_per_node if payload else 0.0
    moved["supports"] = supports_bytes(config, work) * ranks_per_node
    moved["routed experts"] = routed_experts_bytes(config, work, where.world, ranks_per_node)
    if config.rollout.engine == "sglang" and config.rollout.sglang.sync == "disk":
        moved[config.rollout.sglang.sync_folder] = where.engine.weight_bytes * where.engine.tp
    if config.checkpoint.every and config.optimizer.type == "adam":
        moved["a checkpoint"] = 12 * student.parameters * ranks_per_node
    return {what: size for what, size in moved.items() if size}
