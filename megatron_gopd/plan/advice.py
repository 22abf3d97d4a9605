"""What to change in a configuration that does not fit, and how much each change gains."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.plan.hardware import GIB
from megatron_gopd.plan.memory import OnRank, Phase
from megatron_gopd.plan.placement import Placement


def advice(config: Config, phase: Phase, on: OnRank, where: Placement, usable: float) -> list[str]:
    """Changes that lower the peak of `phase`, the largest gain first."""
    gains = _changes(config, phase, on, where)
    excess = phase.bytes - usable
    told = [
        f"{'enough: ' if gain >= excess else ''}{change} gains {gain / GIB:.1f} GiB"
        for change, gain in gains
        if gain > 0
    ]
    return told or [f"more GPUs, or GPUs with {excess / GIB:.1f} GiB more"]


def _changes(config: Config, phase: Phase, on: OnRank, where: Placement) -> list[tuple[str, float]]:
    parts, student, layout = phase.parts, config.student, config.student.layout
    found = []
    tokens = config.training.max_tokens_per_micro_batch
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    if "activations" in parts:
        active = parts["activations"]
        if tokens > longest:
            found.append((f"training.max_tokens_per_micro_batch={tokens // 2}", active / 2))
        else:
            found.append((f"student.layout.cp={2 * layout.cp} (rows of {longest} tokens are cut)", active / 2))
        if student.recompute != "full" and phase.name == "update":
            found.append(("student.recompute=full", 0.8 * active))
    state = parts.get("optimizer", 0.0)
    if not student.offload and phase.name != "update":
        found.append(("student.offload=true", state + parts.get("gradients", 0.0)))
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
