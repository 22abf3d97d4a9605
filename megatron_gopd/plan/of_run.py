"""The plan of a run that is starting: on the nodes it has, in the memory that its cards have free."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_gopd.config import Config
from megatron_gopd.config.placement import Node
from megatron_gopd.errors import UserError
from megatron_gopd.plan.hardware import card
from megatron_gopd.plan.memory import Phase
from megatron_gopd.plan.placement import on_nodes
from megatron_gopd.plan.planning import fastest
from megatron_gopd.plan.words import lacking, levers_in_words
from megatron_gopd.plan.workload import Workload


@dataclass(frozen=True)
class Taken:
    """Levers that memory decided."""

    config: Config  # with none left at `auto`
    line: str
    phases: list[Phase]  # each of the rank that is fullest in it
    usable_bytes: float
    fits: bool


def take(config: Config, nodes: list[Node], name: str, memory_bytes: float, free_bytes: float) -> Taken:
    """For ranks on `nodes`, every one of which has a card of `memory_bytes`, `free_bytes` of them free or more.

    Raises:
        UserError: what the job would refuse; no share of a GPU is enough for its servers.
    """
    on = card(name, memory_bytes, free_bytes, nodes[0].ranks)
    gpus = sum(len(node.gpus) for node in nodes)
    plan = fastest(config, gpus, on, Workload.of(config), on_nodes(config, nodes))
    if why := lacking(plan):
        raise UserError(why)
    taken = plan.config.model_copy(update={"training": config.training})  # the LM head looks at what is free by then
    return Taken(taken, levers_in_words(plan), plan.phases, on.usable_bytes, plan.fits)
