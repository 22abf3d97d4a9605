"""Layers stepped once for each way of cutting them, and pipeline stages of any depth made from them."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

from megatron_gopd.config import Config, Layout
from megatron_gopd.plan import seams
from megatron_gopd.plan.counts import Counts, at_depth, combined
from megatron_gopd.plan.dry_run import Stage, step
from megatron_gopd.plan.roles import Role


class Layers:
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
