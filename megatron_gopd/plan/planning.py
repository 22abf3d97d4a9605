"""A configuration and a number of GPUs -> its plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.kernels.workspace import kept_bytes
from megatron_gopd.mcore.fp8 import check_fp8
from megatron_gopd.mcore.routing_replay import check_replay
from megatron_gopd.mcore.row_length import check_context
from megatron_gopd.plan import memory
from megatron_gopd.plan.dry_run import Held, Stage, construct, sample_ranks, stages
from megatron_gopd.plan.hardware import GIB, Machine
from megatron_gopd.plan.levers import most_resident, rungs
from megatron_gopd.plan.memory import OnRank
from megatron_gopd.plan.placement import Placement, place
from megatron_gopd.plan.planned import Plan, assemble, largest_of
from megatron_gopd.plan.roles import Role, located, roles_of
from megatron_gopd.plan.workload import Workload

MODELS = Path("examples/models")


def plan(config: Config, gpus: int, machine: Machine, work: Workload, models: Path = MODELS) -> Plan:
    """The plan of `gpus` GPUs, on nodes of which every GPU is a rank's or a server's.

    Raises:
        UserError: what the cluster would refuse, in its words: a shape, a division, a group.
    """
    config, said = located(config, models)
    where = place(config, gpus, machine.gpus_per_node)
    return replace(fastest(config, gpus, of_ranks(machine, where), work, where), said=said + _not_planned(config))


def fastest(config: Config, gpus: int, machine: Machine, work: Workload, where: Placement) -> Plan:
    """Build every role on fake ranks, then price what was counted, with every lever that is left at `auto` as fast as
    fits; with none of them to spare where nothing fits. Where the trainer leaves colocated servers little, saving more
    may be faster: the fastest is what has the shortest step.

    Raises:
        UserError: what the cluster would refuse.
    """
    resident = most_resident(config)
    roles = roles_of(resident)
    check_context(config)
    check_replay(config)
    _check_layouts(roles, where, machine)
    held = {rank: construct(resident, roles, rank, where.world) for rank in sample_ranks(roles, where.world)}
    for shares in held.values():  # a model under two names may be held twice, once one of them waits in host memory
        shares |= {name: shares[role.name] for role in roles for name in role.names}
    sizes = {role.settings.model: largest_of([role], held)[role.name].weights for role in roles[1:]}
    stepped = Stepped(where.world, longest_micro_batch(config))
    taken = misfit = None
    for levers, pulled in rungs(config, sizes):
        roles = roles_of(pulled)
        pulled = with_head_memory(pulled, roles, held, where, machine)
        now = assemble(pulled, gpus, machine, work, where, roles, held, stepped.of(pulled, roles), [])
        now = replace(now, levers=levers, faster=misfit)
        if not now.fits:
            misfit = misfit if taken else now
            continue
        taken = min(taken or now, now, key=lambda plan: plan.time.step)
        if not now.short_of_cache:
            break
    return taken or misfit


class Stepped:
    """The stages of roles, each stepped once: offload is arithmetic, and what is computed again the student's alone."""

    def __init__(self, world: int, tokens: int):
        self._world, self._tokens = world, tokens
        self._known: dict[tuple, list[Stage]] = {}

    def of(self, config: Config, roles: list[Role]) -> dict[str, list[Stage]]:
        head = config.training.lm_head_gib
        keys = {r.name: (r.name, r.settings.recompute, head) if r.trained else (r.name,) for r in roles}
        for role in roles:
            if keys[role.name] not in self._known:
                self._known[keys[role.name]] = stages(config, role, self._world, self._tokens)
        return {name: self._known[key] for name, key in keys.items()}


def _not_planned(config: Config) -> list[str]:
    return [
        f"{who} answers from elsewhere ({settings.engine}): its GPUs, memory and time are not in this plan"
        for who, settings in config.scorers().items()
        if settings.engine != "megatron"
    ]


def of_ranks(machine: Machine, where: Placement) -> Machine:
    """Its nodes as the trainer sees them: without the GPUs that are servers' own."""
    return machine.model_copy(update={"gpus_per_node": where.ranks_per_node})


def with_head_memory(
    config: Config, roles: list[Role], held: dict[int, dict[str, Held | None]], where: Placement, machine: Machine
) -> Config:
    """What the LM head keeps of a chunk left at `auto`, as the fullest rank will find it in its first update."""
    if config.training.lm_head_gib != "auto":
        return config
    taken = (memory.before_updates(config, roles, OnRank(rank, shares, {}), where) for rank, shares in held.items())
    kept = kept_bytes(machine.usable_bytes - max(taken))
    return config.model_copy(update={"training": config.training.model_copy(update={"lm_head_gib": kept / GIB})})


def longest_micro_batch(config: Config) -> int:
    """Tokens of the largest micro-batch there may be: full, or one row that is longer."""
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens - 1
    return max(config.training.max_tokens_per_micro_batch, longest)


def _check_layouts(roles: list[Role], where: Placement, machine: Machine) -> None:
    for role in roles:
        who = f"{role.name} ({role.settings.model})"
        role.architecture.check_layout(role.settings.layout, who)
        check_fp8(role.settings.fp8, role.settings.dtype, role.architecture, role.settings.layout, who)
        if role.settings.fp8 and machine.chip.fp8_flops is None:
            raise UserError(f"{who}: fp8 needs a GPU that has it, and {machine.name} has not; remove the key fp8")
        try:
            role.settings.layout.span(where.world, who)
        except UserError as error:
            servers = f"; {where.server_gpus} GPU(s) are the servers'" if where.kind == "split" else ""
            raise UserError(f"{error}{servers}") from None
