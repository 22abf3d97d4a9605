"""Layouts and placements of all roles, the fastest that fit first."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_gopd.config import Config, Layout
from megatron_gopd.errors import UserError
from megatron_gopd.plan.dry_run import first_rank
from megatron_gopd.plan.hardware import GIB, Machine
from megatron_gopd.plan.layers import Layers
from megatron_gopd.plan.levers import most_frugal
from megatron_gopd.plan.overrides import of_layout
from megatron_gopd.plan.placement import Placement, place
from megatron_gopd.plan.planned import Plan, assemble
from megatron_gopd.plan.planning import longest_micro_batch, of_ranks
from megatron_gopd.plan.roles import Role, located, roles_of
from megatron_gopd.plan.servers import placements
from megatron_gopd.plan.shares import share
from megatron_gopd.plan.workload import Workload

SECONDS = 35.0  # of this process, after which no further kind of layer is stepped
KEPT = 4  # layouts of each role that are combined with those of the others
SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Found:
    """A combination, and the keys that make it from the configuration it was searched for."""

    plan: Plan
    overrides: dict[str, object]


def search(config: Config, gpus: int, machine: Machine, work: Workload, models: Path) -> list[Found]:
    """Every combination that fits, the fastest step first. Raises UserError: none does."""
    config, _ = located(config, models)
    config, deadline = most_frugal(config), time.process_time() + SECONDS
    found: list[Found] = []
    layers = Layers(longest_micro_batch(config), deadline)
    for overrides, placed in placements(config, min(gpus, machine.gpus_per_node)):
        try:
            where = place(placed, gpus, machine.gpus_per_node)
        except UserError:
            continue
        nodes = of_ranks(machine, where)
        layers.explore(placed, [(role, _layouts(role, where, nodes)) for role in roles_of(placed)], where.world)
        found += _of_placement(placed, overrides, gpus, nodes, work, where, layers)
    fitting = sorted((one for one in found if one.plan.fits), key=lambda one: one.plan.time.step)
    if not fitting:
        raise UserError(_nothing_fits(found, gpus, machine))
    return fitting


def _of_placement(
    config: Config, overrides: dict, gpus: int, machine: Machine, work: Workload, where: Placement, layers: Layers
) -> list[Found]:
    roles, candidates = roles_of(config), []
    for role in roles:
        options = [_candidate(config, role, layout, where, layers) for layout in _layouts(role, where, machine)]
        candidates.append(_best([option for option in options if option], config, work, where, machine))
    found = []
    for choice in itertools.product(*candidates):
        chosen = [role for role, _, _ in choice]
        shares = {role.name: held for role, held, _ in choice}
        held = dict.fromkeys({0, first_rank(chosen[0], where.world, chosen[0].settings.layout.pp - 1)}, shares)
        stepped = {role.name: stages for role, _, stages in choice}
        plan = assemble(config, gpus, machine, work, where, chosen, held, stepped, [])
        layouts: dict[str, object] = {}
        for role, before in zip(chosen, roles, strict=True):
            layouts |= of_layout(role, before.settings.layout)
        found.append(Found(plan, overrides | layouts))
    return found


def _layouts(role: Role, where: Placement, machine: Machine) -> list[Layout]:
    """Those that the model can be cut into, and that the ranks can be filled with; the configured one first."""
    a, found = role.architecture, [role.settings.layout]
    experts = (1, 2, 4, 8, 16, 32) if a.experts else (1,)
    for tp, pp, ep in itertools.product(SIZES, SIZES, experts):
        if tp > machine.gpus_per_node or ep > where.world:
            continue
        found.append(Layout(tp=tp, pp=pp, ep=ep, sequence_parallel=tp > 1))
    return [layout for layout in dict.fromkeys(found) if _is_possible(role, layout, where)]


def _is_possible(role: Role, layout: Layout, where: Placement) -> bool:
    try:
        role.architecture.check_layout(layout, role.name)
        layout.span(where.world, role.name)
    except UserError:
        return False
    return True


def _candidate(config: Config, role: Role, layout: Layout, where: Placement, layers: Layers):
    """(role in that layout, what a rank holds, its stages), or None where its kind of layer was not reached in time."""
    settings = role.settings.model_copy(update={"layout": layout})
    role = replace(role, settings=settings)
    held = share(role.architecture, settings, where.world, optimizer=config.optimizer.type if role.trained else None)
    stages = layers.stages(config, role, where.world)
    return stages and (role, held, stages)


def _best(options: list, config: Config, work: Workload, where: Placement, machine: Machine) -> list:
    """The fastest few whose own bytes fit."""
    from megatron_gopd.plan.seconds import scoring_seconds, update_parts

    def seconds(option) -> float:
        role, held, stages = option
        if role.trained:
            return sum(update_parts(config, role, held, stages, where, work, machine).values())
        return held.weights / machine.host_bandwidth + scoring_seconds(config, role, stages, where, work, machine)

    def fits(option) -> bool:
        _, held, stages = option
        own = held.weights + held.gradients + held.masters + max(stage.peak_bytes for stage in stages)
        return own < machine.usable_bytes

    return sorted(filter(fits, options), key=seconds)[:KEPT]


def _nothing_fits(found: list[Found], gpus: int, machine: Machine) -> str:
    if not found:
        return f"no layout of these models fills {gpus} GPUs: give another --gpus"
    least = min(found, key=lambda one: max(phase.bytes for phase in one.plan.phases))
    phase = max(least.plan.phases, key=lambda phase: phase.bytes)
    short = (phase.bytes - machine.usable_bytes) / GIB
    return (
        f"nothing fits into {gpus} x {machine.name}: the nearest, {least.overrides}, is {short:.1f} GiB short in the "
        f"phase {phase.name}; {'; '.join(least.plan.changes(phase)[:3])}"
    )
