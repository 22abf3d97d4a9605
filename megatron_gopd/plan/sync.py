"""Weights on their way to an engine: who sends how much, and how long it takes."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan import price
from megatron_gopd.plan.decode import expert_parameters, parameters
from megatron_gopd.plan.hardware import Machine
from megatron_gopd.plan.placement import ITEM, Placement


def sent_bytes(config: Config, world: int) -> dict[int, int]:
    """{rank: bytes} that it broadcasts to every server under `sync: distributed`; see mcore.receivers.senders."""
    student = config.student
    layout, item, a = student.layout, ITEM[student.dtype], Architecture.read(student.model)
    span = layout.span(world, "student")
    a_stage = len(span) // layout.pp
    found = {}
    for stage in range(layout.pp):
        of_stage, of_experts = _of_stage(a, stage, layout.pp)
        for group in range(layout.ep):
            elements = of_experts // layout.ep + (0 if group else of_stage)
            found[span[0] + stage * a_stage + group * layout.etp] = elements * item
    return {rank: size for rank, size in found.items() if size}


def sync_seconds(config: Config, where: Placement, machine: Machine) -> float:
    """The student's weights put together, and into the engine."""
    weights, a = where.engine.weight_bytes * where.engine.tp, where.engine.architecture
    gathered = weights / price.bandwidth(where.world <= machine.gpus_per_node, machine)
    if where.kind == "embedded":
        return gathered + 2 * weights / machine.memory_bandwidth
    handed = (a.layers * (9 + (3 * a.experts.count if a.experts else 3)) + 3) * machine.seconds.synced_tensor
    if config.rollout.sglang.sync == "disk":
        return gathered + handed + 2 * weights / machine.disk_bandwidth  # written, and read by the servers
    if config.rollout.sglang.sync == "tensor":
        return gathered + handed + weights / machine.host_bandwidth
    # senders put their parts together at once, beside what is sent, all but the first bucket; they send in turn
    most = max(sent_bytes(config, where.world).values())
    within = price.bandwidth(config.student.layout.tp <= machine.gpus_per_node, machine)
    first = min(most, config.rollout.sglang.bucket_bytes) / within
    return first + max(most / within, handed + weights / price.bandwidth(False, machine))


def _of_stage(a: Architecture, stage: int, stages: int) -> tuple[int, int]:
    """Numbers of a pipeline stage: those of no expert, and those of experts. Stages have as many layers each."""
    experts, vocabulary = expert_parameters(a), a.vocab_size * a.hidden_size
    ends = a.hidden_size + vocabulary * (1 if a.tied else 2)  # the last norm, embedding and head
    here = (parameters(a) - experts - ends) // stages
    here += vocabulary if stage == 0 else 0
    here += a.hidden_size + (0 if a.tied else vocabulary) if stage == stages - 1 else 0
    return here, experts // stages
