"""A plan's memory in words."""

from __future__ import annotations

from megatron_gopd.plan import memory
from megatron_gopd.plan.hardware import GIB
from megatron_gopd.plan.memory import Phase
from megatron_gopd.plan.placement import SHARE
from megatron_gopd.plan.planned import Plan


def levers_in_words(plan: Plan) -> str:
    """What was taken of the levers at `auto`, its arithmetic, and what the next faster setting would need."""
    fullest = max(plan.phases, key=lambda phase: phase.bytes)
    of = f"of {plan.machine.usable_bytes / GIB:.1f} usable, on rank {plan.fullest[fullest.name]}"
    share = f", {SHARE} {plan.where.fraction:g} for servers" if plan.where.by_memory else ""
    line = f"memory: {plan.levers}{share}: {phase_in_words(fullest)} {of}{'' if plan.fits else ', which does not fit'}"
    if plan.faster:
        needed = max(plan.faster.phases, key=lambda phase: phase.bytes)
        line += f"; next faster, {plan.faster.levers}: {needed.bytes / GIB:.1f} GiB in the phase {needed.name}"
    return line


def phase_in_words(phase: Phase) -> str:
    """Its bytes and their parts, the largest first."""
    parts = sorted(phase.parts.items(), key=lambda part: -part[1])
    said = " + ".join(f"{what} {size / GIB:.1f}" for what, size in parts if size >= 0.05 * GIB)
    return f"{phase.bytes / GIB:.1f} GiB in the phase {phase.name}{f' ({said})' if said else ''}"


def lacking(plan: Plan) -> str:
    """Why colocated servers have no room for one sequence; nothing where they have, or their share is set by hand."""
    where = plan.where
    if not where.by_memory or plan.cache_tokens >= plan.longest:
        return ""
    with_servers = [phase for phase in plan.phases if phase.name in memory.WITH_SERVERS]
    phase = max(with_servers, key=lambda phase: phase.bytes)
    trainers = {what: size for what, size in phase.parts.items() if what not in memory.OF_SERVERS}
    kept, usable = sum(trainers.values()), plan.machine.usable_bytes
    said = " + ".join(f"{what} {size / GIB:.1f}" for what, size in trainers.items() if size >= 0.05 * GIB)
    least = where.engine.weight_bytes + plan.longest * where.engine.kv_bytes
    rest = memory.server_rest(plan.machine)
    return (
        f"rollout.sglang.colocated: no share of a GPU is enough for servers beside the trainer. Of {usable / GIB:.1f} "
        f"GiB the trainer keeps {kept / GIB:.1f} in the phase {phase.name} ({said}), and SGLang's activations and "
        f"graphs take {rest / GIB:.1f}; what is left, {(usable - kept - rest) / GIB:.1f}, is less than the "
        f"{least / GIB:.1f} of the weights and a cache of {plan.longest:,} tokens. Raise student.layout.tp or "
        f"rollout.sglang.options.tp-size, lower rollout.max_response_tokens, leave student.offload at auto, or set "
        f"rollout.sglang.options.{SHARE} by hand"
    )
