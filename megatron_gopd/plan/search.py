"""Layouts and placements of all roles, the fastest that fit first."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from megatron_gopd.config import Config, Layout
from megatron_gopd.errors import UserError
from megatron_gopd.plan import seams
from megatron_gopd.plan.counts import Counts, at_depth, combined
from megatron_gopd.plan.dry_run import Stage, step
from megatron_gopd.plan.hardware import GIB, Machine
from megatron_gopd.plan.placement import Placement, options_of, place
from megatron_gopd.plan.planning import Plan, assemble, longest_micro_batch
from megatron_gopd.plan.roles import Role, as_written, located, roles_of, settled
from megatron_gopd.plan.shares import share
from megatron_gopd.plan.workload import Workload

SECONDS = 35.0  # of this process, after which no further kind of layer is stepped
COLOCATED = 0.7  # of what is free, for servers on the trainer's GPUs: scoring begins before they leave
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
    config, deadline = settled(config), time.process_time() + SECONDS
    found: list[Found] = []
    layers = _Layers(longest_micro_batch(config), deadline)
    for overrides, placed, trainers in _placements(config, gpus, machine.gpus_per_node):
        try:
            where = place(placed, trainers, machine.gpus_per_node)
        except UserError:
            continue
        layers.explore(placed, [(role, _layouts(role, where, machine)) for role in roles_of(placed)], where.world)
        found += _of_placement(placed, overrides, trainers, machine, work, where, layers)
    fitting = sorted((one for one in found if one.plan.fits), key=lambda one: one.plan.time.step)
    if not fitting:
        raise UserError(_nothing_fits(found, gpus, machine))
    return fitting


def dotted(overrides: dict[str, object]) -> list[str]:
    """As the command line takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def as_yaml(overrides: dict[str, object]) -> str:
    """Dotted keys -> a tree that can be merged into the configuration."""
    tree: dict = {}
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return yaml.safe_dump(tree, sort_keys=False)


def _placements(config: Config, gpus: int, gpus_per_node: int) -> Iterator[tuple[dict, Config, int]]:
    """(overrides, configuration with them, GPUs of this job): as configured; and servers of one or two GPUs: on all of
    a node's, or on a quarter or half of them alone; of several nodes, on a quarter or half of the nodes."""
    yield {}, config, gpus
    if config.algorithm.type == "sft" or config.rollout.sglang.urls:
        return
    for tp in (1, 2):
        options = options_of(config.rollout.sglang) | {"tp-size": tp}
        one = gpus <= gpus_per_node
        ways = _on_a_node(gpus, tp, options) if one else _on_nodes(gpus, gpus_per_node, options, config.run.folder)
        for servers, trainers in ways:
            batch = 256 * servers["options"].get("dp-size", 1)  # sequences of a server
            sglang = config.rollout.sglang.model_copy(update=servers)
            changed = {"engine": "sglang", "max_batch_size": batch}
            if servers["colocated"] and config.rollout.max_staleness:
                changed["max_staleness"] = 0  # the schema's rule
            rollout = changed | {"sglang": sglang}
            overrides = {f"rollout.{key}": value for key, value in changed.items()}
            overrides |= {f"rollout.sglang.{key}": value for key, value in servers.items()}
            yield overrides, config.model_copy(update={"rollout": config.rollout.model_copy(update=rollout)}), trainers


def _on_a_node(gpus: int, tp: int, options: dict) -> Iterator[tuple[dict, int]]:
    """Servers of the run's own: colocated from the first GPU on, otherwise on the last ones."""
    for colocated, count in ((True, gpus // tp), (False, gpus // 4 // tp), (False, gpus // 2 // tp)):
        if count < 1:
            continue
        first = 0 if colocated else gpus - count * tp
        places = [list(range(first + i * tp, first + (i + 1) * tp)) for i in range(count)]
        asked = {"mem-fraction-static": COLOCATED} | options if colocated else options
        sync = "disk" if colocated else "distributed"  # NCCL has no two ranks on one GPU
        yield {"colocated": colocated, "count": count, "gpus": places, "options": asked, "sync": sync}, gpus


def _on_nodes(gpus: int, gpus_per_node: int, options: dict, shared: str) -> Iterator[tuple[dict, int]]:
    """One server with a replica on every GPU, or pair, of a node; its address is known when it runs."""
    nodes, tp = gpus // gpus_per_node, options["tp-size"]
    if gpus_per_node % tp:
        return
    for serving in sorted({nodes // 4, nodes // 2} - {0}):
        urls = [f"http://NODE{i}:30000" for i in range(serving)]
        servers = {"colocated": False, "gpus": None, "urls": urls, "sync": "disk", "sync_folder": shared}
        yield servers | {"options": options | {"dp-size": gpus_per_node // tp}}, gpus - serving * gpus_per_node


def _of_placement(
    config: Config, overrides: dict, gpus: int, machine: Machine, work: Workload, where: Placement, layers: _Layers
) -> list[Found]:
    roles, candidates = roles_of(config), []
    for role in roles:
        options = [_candidate(config, role, layout, where, layers) for layout in _layouts(role, where, machine)]
        candidates.append(_best([option for option in options if option], config, work, where, machine))
    found = []
    for choice in itertools.product(*candidates):
        chosen = [role for role, _, _ in choice]
        held = {0: {role.name: held for role, held, _ in choice}}
        stepped = {role.name: stages for role, _, stages in choice}
        plan = assemble(config, gpus, machine, work, where, chosen, held, stepped, [])
        layouts: dict[str, object] = {}
        for role, before in zip(chosen, roles, strict=True):
            layouts |= _layout_overrides(role, before.settings.layout)
        found.append(Found(plan, overrides | layouts))
    return found


def _layout_overrides(role: Role, before: Layout) -> dict[str, object]:
    """Of everybody that the role is. A reference may be nowhere in the file: its model is written, too."""
    written: dict[str, object] = {}
    for name in role.names:
        key = name
        if name.startswith("the reference"):
            teacher = name.removeprefix("the reference").removeprefix(" of ")
            key = f"{teacher or 'algorithm'}.reference"
            model = role.settings.model_dump(mode="json", include={"model", "dtype", "fp8"}, exclude_defaults=True)
            written |= {f"{key}.{what}": as_written(value) for what, value in model.items()}
        written[f"{key}.layout"] = _written(role.settings.layout, before)
    return written


def _written(layout: Layout, before: Layout) -> dict:
    """What is not by default, and what takes the place of something that was not."""
    keys = {*layout.model_dump(exclude_defaults=True), *before.model_dump(exclude_defaults=True)}
    return layout.model_dump(mode="json", include=keys)


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


def _candidate(config: Config, role: Role, layout: Layout, where: Placement, layers: _Layers):
    """(role in that layout, what a rank holds, its stages), or None where its kind of layer was not reached in time."""
    settings = role.settings.model_copy(update={"layout": layout})
    role = replace(role, settings=settings)
    held = share(role.architecture, settings, where.world, optimizer=config.optimizer.type if role.trained else None)
    stages = layers.stages(config, role, where.world)
    return stages and (role, held, stages)


def _best(options: list, config: Config, work: Workload, where: Placement, machine: Machine) -> list:
    """The fastest few whose own bytes fit."""
    from megatron_gopd.plan.seconds import score_seconds, update_seconds

    def seconds(option) -> float:
        role, held, stages = option
        price = update_seconds if role.trained else score_seconds
        return price(config, role, held, stages, where, work, machine)

    def fits(option) -> bool:
        _, held, stages = option
        own = held.weights + held.gradients + held.masters + max(stage.peak_bytes for stage in stages)
        return own < machine.usable_bytes

    return sorted(filter(fits, options), key=seconds)[:KEPT]


class _Layers:
    """Stages of any depth, from layers that were stepped once for each way of cutting them."""

    def __init__(self, tokens: int, deadline: float):
        self._tokens, self._deadline = tokens, deadline
        self._known: dict[tuple, tuple[Stage, Stage]] = {}

    def explore(self, config: Config, wanted: list[tuple[Role, list[Layout]]], world: int) -> None:
        """Step the first layout of every role, then the second of every role, and so on: none is left without."""
        for of_all in itertools.zip_longest(*(layouts for _, layouts in wanted)):
            for (role, _), layout in zip(wanted, of_all, strict=True):
                if layout is not None:
                    settings = role.settings.model_copy(update={"layout": layout})
                    self.stages(config, replace(role, settings=settings), world)

    def stages(self, config: Config, role: Role, world: int) -> list[Stage] | None:
        """None: it was too late to step this kind of layer. Variants of one architecture are one kind."""
        layout = role.settings.layout
        flat = layout.model_copy(update={"pp": 1})
        key = role.architecture, role.settings.dtype, role.trained, flat
        if key not in self._known:
            if time.process_time() > self._deadline:
                return None
            one_stage = replace(role, settings=role.settings.model_copy(update={"layout": flat}))
            config = config.model_copy(update={"student": one_stage.settings}) if role.trained else config
            replica = max(flat.tp * flat.cp, flat.ep * flat.etp)
            self._known[key] = tuple(self._step(config, one_stage, replica, depth) for depth in (1, 2))
        return _piped(role, *self._known[key])

    def _step(self, config: Config, role: Role, world: int, depth: int) -> Stage:
        with seams.layers_a_stage(depth):
            return step(config, role, world, self._tokens, 0)


def _piped(role: Role, one: Stage, two: Stage) -> list[Stage]:
    """Pipeline stages: the embedding on the first and the head on the last are both counted on the last."""
    pp, layers = role.settings.layout.pp, role.architecture.layers // role.settings.layout.pp
    layer_bytes = max(0.0, two.peak_bytes - one.peak_bytes)
    found = []
    for stage in range(pp):
        last = stage == pp - 1

        def deep(name: str, last: bool = last) -> Counts:
            whole = at_depth(layers, getattr(one, name), getattr(two, name))
            rest = combined([(2, getattr(one, name)), (-1, getattr(two, name))])
            return whole if last else combined([(1, whole), (-1, rest)])

        under_way = pp - stage if role.trained else 1
        peak = one.peak_bytes - layer_bytes + layers * layer_bytes * under_way
        found.append(Stage(one.tokens, deep("micro_batch"), deep("gradients"), deep("step"), peak))
    return found


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
