"""Bytes on a GPU in every phase of a step."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_gopd.config import Config
from megatron_gopd.data import buckets
from megatron_gopd.plan.dry_run import Held, Stage
from megatron_gopd.plan.exact import heads_bytes
from megatron_gopd.plan.hardware import Machine
from megatron_gopd.plan.placement import ITEM, Placement
from megatron_gopd.plan.roles import Role
from megatron_gopd.plan.sync import sent_bytes
from megatron_gopd.plan.workload import Workload

WITH_SERVERS = ("rollout", "sync")  # phases in which colocated servers have their memory
OF_SERVERS = ("engine weights", "KV cache", "engine work space")


@dataclass(frozen=True)
class Phase:
    """What lies in a GPU's memory at its fullest: {what: bytes}."""

    name: str
    parts: dict[str, float]

    @property
    def bytes(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True)
class OnRank:
    """One rank's share of every role, and the stage of each that it is."""

    rank: int
    held: dict[str, Held | None]
    stages: dict[str, Stage | None]


def phases(
    config: Config, roles: list[Role], on: OnRank, where: Placement, work: Workload, machine: Machine
) -> list[Phase]:
    """rollout, score, update and sync of one rank.

    Under `offload` gradients and the optimizer's state are away but in an update, and `ahead` in all of it. Servers
    start before the first, when there are no moments yet, and take their share of what is free. Colocated ones give it
    away when a batch is sampled, before its first row is scored, and take it back before the weights are.
    """
    student, offloads = on.held["student"] or Held(0, 0), config.student.offload
    stage = on.stages["student"]
    activations = stage.peak_bytes if stage else 0.0
    base = _always(config, roles, on, where)
    gradients, optimizer = {"gradients": student.gradients}, {"optimizer": student.masters + student.moments}
    idle = {} if offloads else gradients | optimizer
    served = {}
    if where.shares_gpus:
        kv = max(0.0, cache_bytes(machine, where, at_start(config, roles, on, where)))
        served = {"engine weights": where.engine.weight_bytes, "KV cache": kv}
    if where.kind == "colocated":
        served["engine work space"] = server_rest(machine)
    if where.kind == "resident":
        base |= served
    found, cache = [], served
    if where.kind == "embedded":
        cache = {"KV cache": embedded_cache(config, where, work, machine.whole)}
        base |= cache if buckets.stays(cache["KV cache"], machine.whole) else {}
    if where.kind != "none":
        found.append(Phase("rollout", base | idle | cache | _coming(config, roles, on)))
    if len(roles) > 1:
        found.append(Phase("score", base | idle | _scoring(roles, on)))
    learning = idle | gradients | {"activations": activations} | (optimizer if offloads == "ahead" else {})
    work_space = stage.step.peak_bytes - stage.step.kept_bytes if stage else 0.0  # it keeps the moments
    update = max((base | learning, base | gradients | optimizer | {"work space": work_space}), key=_sum)
    found.append(Phase("update", update))
    if where.kind != "none" and config.algorithm.SAMPLES_STUDENT:
        a = where.engine.architecture
        whole = 2 * a.vocab_size * a.hidden_size * ITEM[config.student.dtype]  # gathered, and as it is sent
        sending = {"whole tensors": whole} | _buckets(config, where)
        found.append(Phase("sync", base | idle | served | sending))
    return found


def _buckets(config: Config, where: Placement) -> dict[str, float]:
    """Of a rank that sends weights to servers: one on its way, and the next, as tensors and as it will be sent."""
    if where.kind == "embedded" or config.rollout.sglang.sync != "distributed":
        return {}
    most = max(sent_bytes(config, where.world).values())
    return {"buckets": 3 * min(config.rollout.sglang.bucket_bytes, most)}


def before_updates(config: Config, roles: list[Role], on: OnRank, where: Placement) -> float:
    """Bytes of a rank when its first update begins: its gradients, and no moments yet."""
    student = on.held["student"] or Held(0, 0)
    masters = 0 if config.student.offload is True else student.masters
    return _sum(_always(config, roles, on, where)) + student.gradients + masters


def at_start(config: Config, roles: list[Role], on: OnRank, where: Placement) -> float:
    """Bytes of a rank when servers start."""
    student = on.held["student"] or Held(0, 0)
    idle = 0 if config.student.offload else student.gradients + student.masters
    return _sum(_always(config, roles, on, where)) + idle


def _always(config: Config, roles: list[Role], on: OnRank, where: Placement) -> dict[str, float]:
    """What lies there in every phase, but for servers."""
    student = on.held["student"] or Held(0, 0)
    base = {"student weights": student.weights} | _resident(roles, on)
    if heads := heads_bytes(config, roles, on.rank, where.world):
        base["scorers' LM heads"] = heads
    if where.kind == "embedded":
        base["engine weights"] = where.copies * where.engine.weight_bytes
    return base


def _sum(parts: dict[str, float]) -> float:
    return sum(parts.values())


def _resident(roles: list[Role], on: OnRank) -> dict[str, float]:
    kept = [on.held[role.name] for role in roles[1:] if not role.settings.offload]
    weights = sum(held.weights for held in kept if held)
    return {"scorers that stay": weights} if weights else {}


def _coming(config: Config, roles: list[Role], on: OnRank) -> dict[str, float]:
    """The first scorer that comes ahead, while a batch is sampled."""
    ahead = [role for role in roles[1:] if role.settings.offload == "ahead" and on.held[role.name]]
    if not (ahead and config.algorithm.SAMPLES_STUDENT):
        return {}
    return {f"{ahead[0].name} weights, ahead": on.held[ahead[0].name].weights}


def _scoring(roles: list[Role], on: OnRank) -> dict[str, float]:
    """Of the scorers, one at a time and the next of those that come ahead, what takes most."""
    most = {}
    ahead = {r.name: on.held[r.name].weights for r in roles[1:] if r.settings.offload == "ahead" and on.held[r.name]}
    for role in roles[1:]:
        held, stage = on.held[role.name], on.stages[role.name]
        if held is None:
            continue
        weights = {f"{role.name} weights": held.weights} if role.settings.offload else {}
        if following := [size for name, size in ahead.items() if name != role.name]:
            weights["the next scorer's weights"] = max(following)
        most = max(most, weights | {"activations": stage.peak_bytes}, key=_sum)
    return most


def embedded_rows(config: Config, where: Placement, work: Workload, memory: float) -> int:
    """That the embedded engine decodes at a time on a GPU of `memory` bytes: each may become as long as any."""
    asked = min(config.rollout.max_batch_size, work.spread_over(where.engines).sequences)
    return buckets.rows_at_a_time(asked, _tokens_of_row(config, work), where.engine.kv_bytes, memory)


def embedded_cache(config: Config, where: Placement, work: Workload, memory: float) -> float:
    """Bytes of the embedded engine's cache, which is made for them at once (data/buckets.py)."""
    rows = embedded_rows(config, where, work, memory)
    return float(buckets.bucket(rows, _tokens_of_row(config, work), rows).room * where.engine.kv_bytes)


def _tokens_of_row(config: Config, work: Workload) -> int:
    return work.prompt_tokens + config.rollout.max_response_tokens


def cache_bytes(machine: Machine, where: Placement, others: float = 0.0) -> float:
    """What a server has for its KV cache on each of its GPUs, beside `others`' bytes.

    Its fraction is of what is free when it starts (SGLang's kv_pool_runtime.py), and holds its weights, too.
    """
    return fraction_of(where, machine) * (machine.free - others) - where.engine.weight_bytes


def fraction_of(where: Placement, machine: Machine) -> float:
    """Of what is free when a server starts, its share."""
    return machine.memory.static_fraction if where.fraction is None else where.fraction


def server_rest(machine: Machine) -> float:
    """Bytes of a colocated server beside its share."""
    return machine.memory.server_rest * machine.whole
