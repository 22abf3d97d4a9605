"""What a plan says: memory and time, from what ranks hold and stages do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from megatron_gopd.config import Config
from megatron_gopd.plan import memory
from megatron_gopd.plan.advice import advice
from megatron_gopd.plan.colocation import with_share
from megatron_gopd.plan.dry_run import Held, Stage
from megatron_gopd.plan.exact import Payload, payload_of
from megatron_gopd.plan.hardware import Machine
from megatron_gopd.plan.host import host_bytes
from megatron_gopd.plan.memory import OnRank, Phase
from megatron_gopd.plan.placement import Placement
from megatron_gopd.plan.roles import Role
from megatron_gopd.plan.seconds import StepTime, micro_batches, step_time
from megatron_gopd.plan.sync import sent_bytes
from megatron_gopd.plan.workload import Workload


@dataclass(frozen=True)
class Plan:
    """What a run will take. `ranks` are those that were built; memory is of the fullest of them."""

    config: Config
    gpus: int
    machine: Machine
    where: Placement
    work: Workload
    roles: list[Role]
    stages: dict[str, list[Stage]]
    ranks: list[OnRank]
    phases: list[Phase]
    fullest: dict[str, int]  # phase -> rank
    cache_tokens: int | None  # of a server
    at_a_time: int  # sequences an engine decodes together
    host: dict[str, float]
    time: StepTime
    payload: Payload | None = None  # hidden states, where the algorithm reads them
    said: list[str] = field(default_factory=list)
    levers: str = ""  # those that were left at `auto`, as they were taken
    faster: Plan | None = None  # the same with the next faster levers, which do not fit

    @property
    def misfits(self) -> list[Phase]:
        return [phase for phase in self.phases if phase.bytes > self.machine.usable_bytes]

    @property
    def fits(self) -> bool:
        return not self.misfits and (self.cache_tokens is None or self.cache_tokens >= self.longest)

    @property
    def short_of_cache(self) -> bool:
        """Whether servers that share memory with the trainer would decode more at a time if they had more of it."""
        return self.where.kind == "colocated" and self.at_a_time < _in_servers(self.config, self.where, self.work, None)

    @property
    def longest(self) -> int:
        return self.config.data.max_prompt_tokens + self.config.rollout.max_response_tokens

    @property
    def all_gpus(self) -> int:
        """Those of servers that others run, too."""
        return self.gpus + (self.where.server_gpus if self.where.kind == "disjoint" else 0)

    @property
    def tokens_per_second_per_gpu(self) -> float:
        return self.work.tokens / self.time.step / self.all_gpus

    @property
    def gpu_hours(self) -> float:
        return self.time.step * self.config.run.steps * self.all_gpus / 3600

    @property
    def longest_response_s(self) -> float:
        """Of the rollout, what the longest response would take alone: more engines do not shorten that."""
        return self.where.engine.seconds(self.work.longest, 1, self.machine)

    @property
    def sent_bytes(self) -> dict[int, int]:
        """{rank: bytes} of the student's weights that it broadcasts to the servers; empty where none does."""
        broadcasts = self.config.rollout.engine == "sglang" and self.config.rollout.sglang.sync == "distributed"
        return sent_bytes(self.config, self.where.world) if broadcasts and self.time.sync else {}

    @property
    def filled_rollout_s(self) -> float:
        """Of a rollout with servers wherever ranks have GPUs for one."""
        engines = max(self.where.engines, self.where.most_engines)
        at_a_time = _at_a_time(
            self.config, replace(self.where, engines=engines), self.work, self.machine, self.cache_tokens
        )
        return self.where.engine.seconds(self.work.spread_over(engines), at_a_time, self.machine)

    def changes(self, phase: Phase) -> list[str]:
        on = next(on for on in self.ranks if on.rank == self.fullest[phase.name])
        return advice(self.config, phase, on, self.where, self.machine)


def assemble(
    config: Config,
    gpus: int,
    machine: Machine,
    work: Workload,
    where: Placement,
    roles: list[Role],
    held: dict[int, dict[str, Held | None]],
    stepped: dict[str, list[Stage]],
    said: list[str],
) -> Plan:
    """Memory and time, from what ranks hold and stages do."""
    ranks = [OnRank(rank, shares, _stages_of(rank, roles, stepped, where)) for rank, shares in held.items()]
    config, where = with_share(config, roles, ranks, where, work, machine)
    fullest, phases = {}, []
    by_rank = [memory.phases(config, roles, on, where, work, machine) for on in ranks]
    for same in zip(*by_rank, strict=True):
        index = max(range(len(same)), key=lambda i: same[i].bytes)
        fullest[same[index].name] = ranks[index].rank
        phases.append(same[index])
    largest = largest_of(roles, held)
    cache_tokens = _cache_tokens(where, machine, by_rank)
    at_a_time = _at_a_time(config, where, work, machine, cache_tokens)
    ranks_per_node = min(where.world, machine.gpus_per_node)
    payload = payload_of(config, roles, where, work, machine)
    hosts = [host_bytes(config, roles, on, where, work, ranks_per_node, payload) for on in ranks]
    host = max(hosts, key=lambda parts: sum(parts.values()))  # the node of the ranks that hold most
    time = step_time(config, roles, largest, stepped, where, work, machine, at_a_time, payload)
    return Plan(
        config,
        gpus,
        machine,
        where,
        work,
        roles,
        stepped,
        ranks,
        phases,
        fullest,
        cache_tokens,
        at_a_time,
        host,
        time,
        payload,
        said,
    )


def largest_of(roles: list[Role], held: dict[int, dict[str, Held | None]]) -> dict[str, Held]:
    """{role: its share on the rank that holds most of it}."""
    return {
        role.name: max((shares[role.name] for shares in held.values() if shares[role.name]), key=lambda h: h.weights)
        for role in roles
    }


def _stages_of(rank: int, roles: list[Role], stepped: dict[str, list[Stage]], where: Placement) -> dict:
    found: dict[str, Stage | None] = {}
    for role in roles:
        span = role.settings.layout.span(where.world, role.name)
        width = len(span) // role.settings.layout.pp
        found[role.name] = stepped[role.name][(rank - span[0]) // width] if rank in span else None
    return found


def _cache_tokens(where: Placement, machine: Machine, by_rank: list[list[Phase]]) -> int | None:
    """Of a server's KV cache; None without servers."""
    if where.kind in ("embedded", "none"):
        return None
    size = memory.cache_bytes(machine, where)
    if where.shares_gpus:  # with the ranks that hold most, too
        size = min(phase.parts["KV cache"] for of_rank in by_rank for phase in of_rank if phase.name == "rollout")
    return max(0, int(size / where.engine.kv_bytes))


def _at_a_time(config: Config, where: Placement, work: Workload, machine: Machine, cache_tokens: int | None) -> int:
    """Sequences of one step that an engine decodes together."""
    if where.kind == "embedded":
        return memory.embedded_rows(config, where, work, machine.whole)
    return _in_servers(config, where, work, cache_tokens)


def _in_servers(config: Config, where: Placement, work: Workload, cache_tokens: int | None) -> int:
    of_step = max(1, -(-work.sequences // max(1, where.engines)))
    return min(of_step, most_at_a_time(config, where, work, cache_tokens))


def most_at_a_time(config: Config, where: Placement, work: Workload, cache_tokens: int | None) -> int:
    """Sequences that an engine decodes together, if there are as many."""
    most = max(1, config.rollout.max_batch_size // where.a_server)
    if cache_tokens is None:
        return most
    mean = work.prompt_tokens + float(work.responses.mean()) / 2
    return max(1, min(most, int(cache_tokens / mean)))


def micro_batches_of(plan: Plan, role: Role) -> int:
    return len(micro_batches(plan.config, role, plan.where, plan.work))
