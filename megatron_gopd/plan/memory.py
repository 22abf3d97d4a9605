"""Bytes on a GPU in every phase of a step, and in the host memory of its node."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_gopd.config import Config
from megatron_gopd.data import buckets
from megatron_gopd.plan.dry_run import Held, Stage
from megatron_gopd.plan.exact import Payload, heads_bytes
from megatron_gopd.plan.hardware import GIB, Machine
from megatron_gopd.plan.placement import ITEM, Placement
from megatron_gopd.plan.roles import Role
from megatron_gopd.plan.supports import supports_bytes
from megatron_gopd.plan.workload import Workload


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

    Under `offload` gradients and the optimizer's state are away but in an update. Servers start before the first, when
    there are no moments yet, and take their share of what is free. Colocated ones give it away when a batch is sampled,
    before its first row is scored, and take it back before the weights are.
    """
    student, offloads = on.held["student"] or Held(0, 0), bool(config.student.offload)
    stage = on.stages["student"]
    activations = stage.peak_bytes if stage else 0.0
    base = _always(config, roles, on, where)
    gradients, optimizer = {"gradients": student.gradients}, {"optimizer": student.masters + student.moments}
    idle = {} if offloads else gradients | optimizer
    served = {}
    if where.shares_gpus:
        at_start = _sum(base) + (0 if offloads else student.gradients + student.masters)
        kv = max(0.0, cache_bytes(machine, where, at_start))
        served = {"engine weights": where.engine.weight_bytes, "KV cache": kv}
    if where.kind == "resident":
        base |= served
    found, cache = [], served
    if where.kind == "embedded":
        cache = {"KV cache": embedded_cache(config, where, work, whole := machine.chip.memory_gib * GIB)}
        base |= cache if buckets.stays(cache["KV cache"], whole) else {}
    if where.kind != "none":
        found.append(Phase("rollout", base | idle | cache))
    if len(roles) > 1:
        found.append(Phase("score", base | idle | _scoring(roles, on)))
    learning = idle | gradients | {"activations": activations}
    work_space = stage.step.peak_bytes - stage.step.kept_bytes if stage else 0.0  # it keeps the moments
    update = max((base | learning, base | gradients | optimizer | {"work space": work_space}), key=_sum)
    found.append(Phase("update", update))
    if where.kind != "none" and config.algorithm.SAMPLES_STUDENT:
        a = where.engine.architecture
        whole = 2 * a.vocab_size * a.hidden_size * ITEM[config.student.dtype]  # gathered, and as it is sent
        found.append(Phase("sync", base | idle | served | {"whole tensors": whole}))
    return found


def before_updates(config: Config, roles: list[Role], on: OnRank, where: Placement) -> float:
    """Bytes of a rank when its first update begins: its gradients, and no moments yet."""
    student = on.held["student"] or Held(0, 0)
    masters = 0 if config.student.offload else student.masters
    return _sum(_always(config, roles, on, where)) + student.gradients + masters


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


def _scoring(roles: list[Role], on: OnRank) -> dict[str, float]:
    """Of the scorers, one at a time, the one that takes most."""
    most = {}
    for role in roles[1:]:
        held, stage = on.held[role.name], on.stages[role.name]
        if held is None:
            continue
        weights = {f"{role.name} weights": held.weights} if role.settings.offload else {}
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
    static = (where.fraction or machine.memory.static_fraction) * (machine.chip.memory_gib * GIB - others)
    return static - where.engine.weight_bytes


def host_bytes(
    config: Config,
    roles: list[Role],
    on: OnRank,
    where: Placement,
    work: Workload,
    ranks_per_node: int,
    payload: Payload | None,
) -> dict[str, float]:
    """Of one node: what its ranks offload, hidden states or supports of scorers, weights on their way to servers, and a
    checkpoint on its way to the disk: the optimizer's state of a rank's part of the model, in float32, on every
    data-parallel rank."""
    student = on.held["student"] or Held(0, 0)
    moved = {"optimizer": (student.masters + student.moments) * ranks_per_node if config.student.offload else 0.0}
    frozen = [on.held[role.name] for role in roles[1:] if role.settings.offload]
    moved["scorers"] = sum(held.weights for held in frozen if held) * ranks_per_node
    moved["hidden states"] = payload.host * ranks_per_node if payload else 0.0
    moved["supports"] = supports_bytes(config, work) * ranks_per_node
    if config.rollout.engine == "sglang" and config.rollout.sglang.sync == "disk":
        moved[config.rollout.sglang.sync_folder] = where.engine.weight_bytes * where.engine.tp
    if config.checkpoint.every and config.optimizer.type == "adam":
        moved["a checkpoint"] = 12 * student.parameters * ranks_per_node
    return {what: size for what, size in moved.items() if size}
