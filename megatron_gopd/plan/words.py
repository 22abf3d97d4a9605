"""A plan's memory in a line."""

from __future__ import annotations

from megatron_gopd.plan.hardware import GIB
from megatron_gopd.plan.memory import Phase
from megatron_gopd.plan.planned import Plan


def levers_in_words(plan: Plan) -> str:
    """What was taken of the levers at `auto`, its arithmetic, and what the next faster setting would need."""
    fullest = max(plan.phases, key=lambda phase: phase.bytes)
    of = f"of {plan.machine.usable_bytes / GIB:.1f} usable, on rank {plan.fullest[fullest.name]}"
    line = f"memory: {plan.levers}: {phase_in_words(fullest)} {of}{'' if plan.fits else ', which does not fit'}"
    if plan.faster:
        needed = max(plan.faster.phases, key=lambda phase: phase.bytes)
        line += f"; next faster, {plan.faster.levers}: {needed.bytes / GIB:.1f} GiB in the phase {needed.name}"
    return line


def phase_in_words(phase: Phase) -> str:
    """Its bytes and their parts, the largest first."""
    parts = sorted(phase.parts.items(), key=lambda part: -part[1])
    said = " + ".join(f"{what} {size / GIB:.1f}" for what, size in parts if size >= 0.05 * GIB)
    return f"{phase.bytes / GIB:.1f} GiB in the phase {phase.name}{f' ({said})' if said else ''}"
