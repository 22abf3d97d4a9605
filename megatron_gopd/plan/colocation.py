"""The share of servers that give their GPUs' memory to the trainer, and take it back."""

from __future__ import annotations

import math
from dataclasses import replace

from megatron_gopd.config import Config
from megatron_gopd.plan import memory
from megatron_gopd.plan.hardware import Machine
from megatron_gopd.plan.memory import OnRank
from megatron_gopd.plan.placement import SHARE, Placement
from megatron_gopd.plan.roles import Role
from megatron_gopd.plan.workload import Workload


def with_share(
    config: Config, roles: list[Role], ranks: list[OnRank], where: Placement, work: Workload, machine: Machine
) -> tuple[Config, Placement]:
    """Of what is free when they start, as much as every rank leaves them in the phases in which they have it. What is
    set by hand stays."""
    if where.kind != "colocated" or where.fraction is not None:
        return config, where
    share = math.floor(100 * min(_share(config, roles, on, where, work, machine) for on in ranks)) / 100
    servers = config.rollout.sglang
    servers = servers.model_copy(update={"options": servers.options | {SHARE: share}})
    rollout = config.rollout.model_copy(update={"sglang": servers})
    return config.model_copy(update={"rollout": rollout}), replace(where, fraction=share, by_memory=True)


def _share(config: Config, roles: list[Role], on: OnRank, where: Placement, work: Workload, machine: Machine) -> float:
    elsewhere = replace(where, kind="split")
    phases = memory.phases(config, roles, on, elsewhere, work, machine)
    beside = max(phase.bytes for phase in phases if phase.name in memory.WITH_SERVERS)
    left = machine.usable_bytes - beside - memory.server_rest(machine)
    return left / (machine.free - memory.at_start(config, roles, on, where)) if left > 0 else 0.0
