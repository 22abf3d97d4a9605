"""Seconds of every phase of a step."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_gopd.config import Config
from megatron_gopd.plan import fetches, price
from megatron_gopd.plan.dry_run import Held, Stage
from megatron_gopd.plan.exact import Payload
from megatron_gopd.plan.hardware import Machine
from megatron_gopd.plan.placement import Placement
from megatron_gopd.plan.roles import Role
from megatron_gopd.plan.sync import sync_seconds
from megatron_gopd.plan.workload import Workload

LAST_CHUNK = 0.25  # of a batch: servers hand out quarters, so only the last one's scoring does not overlap


@dataclass(frozen=True)
class StepTime:
    rollout: float
    score: dict[str, float]  # by role
    update: float
    of_update: price.Parts
    sync: float
    overlapped: float  # seconds that pass beside others

    @property
    def step(self) -> float:
        return self.rollout + sum(self.score.values()) + self.update + self.sync - self.overlapped

    @property
    def dominant(self) -> str:
        phases = {"rollout": self.rollout, "score": sum(self.score.values()), "update": self.update, "sync": self.sync}
        return max(phases, key=phases.get)


def step_time(
    config: Config,
    roles: list[Role],
    held: dict[str, Held],
    stages: dict[str, list[Stage]],
    where: Placement,
    work: Workload,
    machine: Machine,
    at_a_time: int,
    payload: Payload | None = None,
) -> StepTime:
    """held: the largest share of a rank, by role; at_a_time: sequences that an engine decodes together; payload: hidden
    states, where the algorithm reads them."""
    rollout = sync = 0.0
    if where.kind != "none":
        rollout = where.engine.seconds(work.spread_over(where.engines), at_a_time, machine)
    if where.kind != "none" and config.algorithm.SAMPLES_STUDENT:
        sync = sync_seconds(config, where, machine)
    scorers, parts = roles[1:], chunks(config, where, work)
    score = {role.name: scoring_seconds(config, role, stages[role.name], where, work, machine) for role in scorers}
    waited = fetches.of_scorers(scorers, held, score, rollout / parts, parts, machine)
    for role in scorers:
        again = late_seconds(config, role, held[role.name], payload, machine) if payload else 0.0
        score[role.name] += waited[role.name] + again
    after = 0.0 if where.kind == "colocated" else sync + rollout  # its servers wait until the memory is free
    parts = update_parts(config, roles[0], held["student"], stages["student"], where, work, machine, payload, after)
    update = sum(parts.values())
    if config.algorithm.updates > 1:
        score["old log-probs"] = update / 4  # a forward pass beside forward, recomputation and backward
    scored = sum(score.values())
    overlapped = 0.0
    if where.kind in ("split", "disjoint"):
        overlapped = min(rollout, (1 - LAST_CHUNK) * scored)
        if config.rollout.max_staleness:
            overlapped = min(rollout, scored + update)
    return StepTime(rollout, score, update, parts, sync, overlapped)


def micro_batches(config: Config, role: Role, where: Placement, work: Workload, fraction: float = 1.0) -> list:
    layout = role.settings.layout
    replicas = len(layout.span(where.world, role.name)) // (layout.tp * layout.pp * layout.cp)
    return work.micro_batches(replicas, config.training.max_tokens_per_micro_batch, fraction)


def chunks(config: Config, where: Placement, work: Workload) -> int:
    """In how many parts a batch is scored: one of colocated servers, quarters of others, what ranks decode together."""
    if where.kind == "colocated":
        return 1
    if where.kind == "embedded":
        return -(-work.sequences // (config.rollout.max_batch_size * where.engines))
    return round(1 / LAST_CHUNK)


def scoring_seconds(
    config: Config, role: Role, stages: list[Stage], where: Placement, work: Workload, machine: Machine
) -> float:
    """One scorer's passes over what it is asked, with its weights there."""
    batches = micro_batches(config, role, where, work, _asked(config, role))
    return price.pipeline_seconds(stages, batches, machine, fp8=role.settings.fp8 is not None)


def late_seconds(config: Config, role: Role, held: Held, payload: Payload, machine: Machine) -> float:
    """A scorer's weights from the host in an update, for hidden states that are computed within it."""
    return _asked(config, role) * payload.late * held.weights / machine.host_bandwidth if role.settings.offload else 0.0


def _asked(config: Config, role: Role) -> float:
    """The part of a batch that a scorer is asked about."""
    return min(1.0, len(role.names) / max(1, len(config.teachers))) if config.teachers else 1.0


def update_parts(
    config: Config,
    role: Role,
    held: Held,
    stages: list[Stage],
    where: Placement,
    work: Workload,
    machine: Machine,
    payload: Payload | None = None,
    after: float = 0.0,
) -> price.Parts:
    """Forward, recomputation and backward of all micro-batches, gradients summed, the optimizer's step; hidden states
    that come from scorers, in portions each of which fills the pipeline anew.

    after: seconds that pass until the next update, and not in want of the memory that this one leaves."""
    batches = micro_batches(config, role, where, work)
    parts = price.pipeline_parts(stages, batches, machine, fp8=role.settings.fp8 is not None)
    if payload:
        filling = parts["filling of the pipeline"]
        parts |= {"filling of the pipeline": payload.portions * filling, "hidden states": payload.seconds}
    computing = sum(parts.values())
    steps = config.algorithm.updates
    reduced = max(price.reduction_seconds(stage, machine) for stage in stages)
    if role.settings.overlap_communication:
        reduced = max(reduced / 10, reduced - computing / len(batches) / 2)
    state = held.masters + held.moments
    stepped = max(price.optimizer_seconds(stage, state, machine) for stage in stages)
    waited = fetches.of_optimizer(role.settings, state, computing / steps, after, steps, machine)
    return parts | {"gradients reduced": steps * reduced, "optimizer": steps * stepped, "host memory": waited}
