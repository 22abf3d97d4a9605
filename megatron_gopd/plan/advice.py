"""What to change in a configuration that does not fit, and how much each change gains."""

from __future__ import annotations

import math

from megatron_gopd.config import Config
from megatron_gopd.plan.hardware import GIB, Machine
from megatron_gopd.plan.memory import OnRank, Phase, fraction_of
from megatron_gopd.plan.placement import SHARE, Placement


def advice(config: Config, phase: Phase, on: OnRank, where: Placement, machine: Machine) -> list[str]:
    """Changes that lower the peak of `phase`, the largest gain first."""
    excess = phase.bytes - machine.usable_bytes
    gains = _changes(config, phase, on, where, machine)
    if where.shares_gpus and phase.parts.get("KV cache"):
        gains = sorted([*gains, _less_cache(config, phase, where, machine, excess)], key=lambda change: -change[1])
    told = [
        f"{'enough: ' if gain >= excess else ''}{change} gains {gain / GIB:.1f} GiB"
        for change, gain in gains
        if gain > 0
    ]
    return told or [f"more GPUs, or GPUs with {excess / GIB:.1f} GiB more"]


def _changes(config: Config, phase: Phase, on: OnRank, where: Placement, machine: Machine) -> list[tuple[str, float]]:
    parts, student, layout = phase.parts, config.student, config.student.layout
    found = []
    tokens = config.training.max_tokens_per_micro_batch
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if "activations" in parts:
        active = parts["activations"]
        if tokens > longest:
            fewer = max(tokens // 2, longest)
            found.append((f"training.max_tokens_per_micro_batch={fewer}", active * (1 - fewer / tokens)))
        else:
            found.append((f"student.layout.cp={2 * layout.cp} (rows of {longest} tokens are cut)", active / 2))
        if student.recompute != "full" and phase.name == "update":
            found.append(("student.recompute=full", 0.8 * active))
    if not student.offload and phase.name != "update" and (held := on.held["student"]):
        at_start = held.gradients + held.masters  # of which servers that share the GPU take their fraction
        taken = at_start * fraction_of(where, machine) if where.shares_gpus and "KV cache" in parts else 0.0
        found.append(("student.offload=true", at_start + held.moments - taken))
    if student.offload == "ahead" and phase.name == "update" and "activations" in parts:
        found.append(("student.offload=true", parts["optimizer"]))
    ahead = sum(size for what, size in parts.items() if what.endswith((", ahead", "next scorer's weights")))
    if ahead:
        found.append(("offload: true for the scorers that come ahead", ahead))
    sharded = parts["student weights"] + parts.get("gradients", 0.0)
    found.append((f"student.layout.tp={2 * layout.tp}", sharded / 2))
    for name, held in on.held.items():
        if held and f"{name} weights" in parts and name != "student":
            found.append((f"twice the tp or ep of {name}", held.weights / 2))
    if "scorers that stay" in parts:
        found.append(("offload: true for the scorers", parts["scorers that stay"]))
    if parts.get("KV cache") and where.kind == "embedded":
        batch = config.rollout.max_batch_size
        found.append((f"rollout.max_batch_size={max(1, batch // 2)}", parts["KV cache"] / 2))
        found.append(("rollout.engine=sglang", parts["KV cache"] + parts["engine weights"]))
    return sorted(found, key=lambda change: -change[1])[:5]


def _less_cache(config: Config, phase: Phase, where: Placement, machine: Machine, excess: float) -> tuple[str, float]:
    """A smaller share for servers on the same GPUs, down to a cache of one sequence."""
    writers = () if config.algorithm.SAMPLES_STUDENT else config.teachers
    key = next((f"teachers.{name}.server" for name in writers), "rollout.sglang")
    cache, fraction = phase.parts["KV cache"], fraction_of(where, machine)
    static = cache + where.engine.weight_bytes
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    least = where.engine.weight_bytes + longest * where.engine.kv_bytes
    wanted = math.floor(100 * fraction * max(static - excess, least) / static) / 100
    change = f"{key}.options.{SHARE}={wanted:g}"
    return change, static * (1 - wanted / fraction)
