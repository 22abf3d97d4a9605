"""Seconds in which computation waits for what comes from host memory, or for what leaves to it."""

from __future__ import annotations

from megatron_gopd.config import schema
from megatron_gopd.plan.dry_run import Held
from megatron_gopd.plan.hardware import Machine
from megatron_gopd.plan.roles import Role


def of_scorers(
    roles: list[Role], held: dict[str, Held], computing: dict[str, float], first: float, parts: int, machine: Machine
) -> dict[str, float]:
    """{role: seconds of a step}, of frozen models, which are asked one after the other in each of `parts` of a batch.

    What comes ahead hides behind the one that comes ahead before it; the first of them behind the sampling of the first
    part, `first` seconds, and of later parts behind nothing. computing: {role: seconds of a step in which it scores}.
    """
    waited, before = {}, None
    for role in roles:
        once = held[role.name].weights / machine.host_bandwidth
        if role.settings.offload != "ahead":
            waited[role.name] = parts * once if role.settings.offload else 0.0
            continue
        if before is None:
            waited[role.name] = max(0.0, once - first) + (parts - 1) * once
        else:
            waited[role.name] = parts * max(0.0, once - computing[before] / parts)
        before = role.name
    return waited


def of_optimizer(
    student: schema.Student, state: float, computing: float, after: float, steps: int, machine: Machine
) -> float:
    """Of `state` bytes in each of a batch's optimizer steps.

    computing: seconds of forward and backward passes before each; after: those in which what the last one leaves has
    time to go.
    """
    if not student.offload:
        return 0.0
    once = state / machine.host_bandwidth
    comes = max(0.0, once - computing) if student.offload == "ahead" else once
    return steps * comes + (steps - 1) * max(0.0, once - computing) + max(0.0, once - after)
