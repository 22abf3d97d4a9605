"""A plan in words, and as JSON."""

from __future__ import annotations

import json
import shlex

from megatron_gopd.plan.exact import told
from megatron_gopd.plan.hardware import GIB
from megatron_gopd.plan.memory import Phase
from megatron_gopd.plan.overrides import dotted
from megatron_gopd.plan.planning import Plan, micro_batches_of
from megatron_gopd.plan.search import Found


def show(plan: Plan) -> str:
    """For a person, in Markdown."""
    return "\n\n".join(filter(None, [_head(plan), _roles(plan), _memory(plan), _time(plan), _verdict(plan)]))


def as_json(plan: Plan) -> str:
    return json.dumps(_tree(plan), indent=1)


def show_search(found: list[Found], most: int = 10) -> str:
    rows = [
        [
            f"{one.plan.time.step:.0f}",
            _layouts(one.plan),
            one.plan.where.kind,
            str(one.plan.where.engines),
            _peak(one.plan),
        ]
        for one in found[:most]
    ]
    table = _table(["step s", "layouts", "placement", "engines", "GiB"], rows)
    written = " ".join(shlex.quote(override) for override in dotted(found[0].overrides))
    return f"{len(found)} combinations fit; the fastest:\n\n{table}\n\noverrides of the first:\n\n    {written}"


def levers_in_words(plan: Plan) -> str:
    """What was taken of the levers at `auto`, its arithmetic, and what the next faster setting would need."""
    fullest = max(plan.phases, key=lambda phase: phase.bytes)
    of = f"of {plan.machine.usable_bytes / GIB:.1f} usable, on rank {plan.fullest[fullest.name]}"
    line = f"memory: {plan.levers}: {phase_in_words(fullest)} {of}{'' if plan.fits else ', which does not fit'}"
    if plan.faster:
        needed = max(plan.faster.phases, key=lambda phase: phase.bytes)
        line += f"; next faster, {plan.faster.levers}: {needed.bytes / GIB:.1f} GiB in the phase {needed.name}"
    return line


def phase_in_words(phase: Phase) -> str:
    """Its bytes and their parts, the largest first."""
    parts = sorted(phase.parts.items(), key=lambda part: -part[1])
    said = " + ".join(f"{what} {size / GIB:.1f}" for what, size in parts if size >= 0.05 * GIB)
    return f"{phase.bytes / GIB:.1f} GiB in the phase {phase.name}{f' ({said})' if said else ''}"


def _head(plan: Plan) -> str:
    config, where, work = plan.config, plan.where, plan.work
    servers = f", {where.engines} engines of {where.engine.tp} GPU(s)" if where.engines else ""
    lines = [
        f"{config.run.name} on {plan.gpus} x {plan.machine.name}: {where.world} ranks, rollout {where.kind}{servers}",
        f"{work.sequences} sequences a step of {work.prompt_tokens} + {work.responses.mean():.0f} tokens on average, "
        f"at most {work.responses.max()} in the response (--prompt-tokens, --response-tokens)",
        *plan.said,
        levers_in_words(plan),
    ]
    return "  \n".join(lines)


def _roles(plan: Plan) -> str:
    rows = []
    for role in plan.roles:
        held = max((on.held[role.name] for on in plan.ranks if on.held[role.name]), key=lambda held: held.weights)
        flops = max(stage.micro_batch.flops for stage in plan.stages[role.name])
        sent = max(sum(stage.micro_batch.sent_bytes.values()) for stage in plan.stages[role.name])
        rows.append(
            [
                ", ".join(role.names),
                role.settings.model.rpartition("/")[2],
                layout_in_words(role.settings.layout),
                f"{held.parameters / 1e9:.3f}",
                f"{held.weights / GIB:.2f}",
                f"{(held.masters + held.moments) / GIB:.2f}",
                str(micro_batches_of(plan, role)),
                f"{flops / 1e12:.0f}",
                f"{sent / 1e9:.1f}",
            ]
        )
    columns = ["role", "model", "layout", "10^9 parameters a rank", "weights GiB", "optimizer GiB", "micro-batches"]
    return _table([*columns, "TFLOP of one", "GB sent in one"], rows)


def layout_in_words(layout) -> str:
    sizes = layout.model_dump(exclude_defaults=True, exclude={"sequence_parallel"})
    return " ".join(f"{key}{value}" for key, value in sizes.items()) or "replicas"


def _memory(plan: Plan) -> str:
    rows = []
    for phase in plan.phases:
        parts = ", ".join(f"{what} {size / GIB:.1f}" for what, size in phase.parts.items() if size > 0.05 * GIB)
        fits = "" if phase.bytes <= plan.machine.usable_bytes else "does not fit"
        rows.append([phase.name, f"{phase.bytes / GIB:.1f}", str(plan.fullest[phase.name]), parts, fits])
    usable = f"{plan.machine.usable_bytes / GIB:.1f}"
    table = _table(["phase", f"GiB of {usable}", "rank", "what", ""], rows)
    notes = []
    if plan.cache_tokens is not None:
        notes.append(f"A server's KV cache holds {plan.cache_tokens:,} tokens; it decodes {plan.at_a_time} at a time.")
    if plan.host:
        host = ", ".join(f"{what} {size / GIB:.0f}" for what, size in plan.host.items())
        notes.append(f"Host memory of a node, GiB of {plan.machine.chip.host_memory_gib:.0f}: {host}.")
    if plan.payload:
        notes.append(told(plan.payload))
    return table + ("\n\n" + " ".join(notes) if notes else "")


def _time(plan: Plan) -> str:
    time = plan.time
    scores = [[f"score, {name}", f"{seconds:.1f}"] for name, seconds in time.score.items()]
    rows = [["rollout", f"{time.rollout:.1f}"], *scores, ["update", f"{time.update:.1f}"], ["sync", f"{time.sync:.1f}"]]
    if time.overlapped:
        rows.append(["beside each other", f"-{time.overlapped:.1f}"])
    rows.append(["step", f"{time.step:.1f}"])
    return "\n\n".join([_table(["phase", "s"], rows), *filter(None, [_longest(plan)]), *_idle(plan)])


def _longest(plan: Plan) -> str:
    """Where more GPUs do not help."""
    if not plan.time.rollout:
        return ""
    alone = plan.longest_response_s
    return (
        f"The longest response, {plan.work.responses.max():,} tokens one after the other, takes {alone:.1f} s alone, "
        f"{alone / plan.time.rollout:.0%} of the rollout: more engines do not shorten that."
    )


def _idle(plan: Plan) -> list[str]:
    """GPUs without work, and what that costs."""
    where, time = plan.where, plan.time
    seconds = [time.step] * bool(where.idle.unused) + [time.rollout] * bool(where.idle.waiting)
    told = [f"{said}: {cost:.1f} s of each step." for said, cost in zip(where.idle.told, seconds, strict=True)]
    if where.idle.waiting and plan.filled_rollout_s < time.rollout:
        told.append(
            f"With {where.most_engines} engines, on all of them, the rollout takes {plan.filled_rollout_s:.1f} s: "
            f"rollout.sglang.count, which is of each node, and nodes: all."
        )
    return [" ".join(told)] if told else []


def _verdict(plan: Plan) -> str:
    lines = [
        f"{plan.tokens_per_second_per_gpu:,.0f} tokens/s/GPU; {plan.config.run.steps} steps take "
        f"{plan.time.step * plan.config.run.steps / 3600:.1f} h, {plan.gpu_hours:,.0f} GPU-hours; {plan.time.dominant} "
        f"takes most."
    ]
    for phase in plan.misfits:
        short = (phase.bytes - plan.machine.usable_bytes) / GIB
        lines.append(f"{phase.name} is {short:.1f} GiB short on rank {plan.fullest[phase.name]}:")
        lines += [f"- {change}" for change in plan.changes(phase)]
    short = sum(plan.host.values()) / GIB - plan.machine.chip.host_memory_gib
    if short > 0:
        lines.append(
            f"The host memory of a node is {short:.0f} GiB short: offload less, cut the student over more ranks (tp, "
            f"pp), or write no checkpoints (checkpoint.every: 0)."
        )
    if plan.cache_tokens is not None and plan.cache_tokens < plan.longest:
        lines.append(
            f"A server cannot hold one sequence of {plan.longest:,} tokens: raise rollout.sglang.options.tp-size, or "
            f"lower rollout.max_response_tokens."
        )
    return "\n".join(lines)


def _layouts(plan: Plan) -> str:
    return "; ".join(f"{role.names[0]} {layout_in_words(role.settings.layout)}" for role in plan.roles)


def _peak(plan: Plan) -> str:
    return f"{max(phase.bytes for phase in plan.phases) / GIB:.1f}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tree(plan: Plan) -> dict:
    time = plan.time
    return {
        "run": plan.config.run.name,
        "gpus": plan.gpus,
        "gpu": plan.machine.name,
        "ranks": plan.where.world,
        "placement": plan.where.kind,
        "fits": plan.fits,
        "roles": {
            role.name: {
                "names": list(role.names),
                "model": role.settings.model,
                "layout": role.settings.layout.model_dump(mode="json"),
                "held": {on.rank: vars(on.held[role.name]) if on.held[role.name] else None for on in plan.ranks},
                "stages": [_stage(stage) for stage in plan.stages[role.name]],
            }
            for role in plan.roles
        },
        "memory_bytes": {phase.name: phase.parts for phase in plan.phases},
        "usable_bytes": plan.machine.usable_bytes,
        "fullest_rank": plan.fullest,
        "cache_tokens": plan.cache_tokens,
        "host_bytes": plan.host,
        "hidden_states": plan.payload and vars(plan.payload),
        "seconds": {
            "rollout": time.rollout,
            "score": time.score,
            "update": time.update,
            "sync": time.sync,
            "overlapped": time.overlapped,
            "step": time.step,
        },
        "longest_response_s": plan.longest_response_s if time.rollout else 0.0,
        "idle_gpus": {"unused": plan.where.idle.unused, "waiting": plan.where.idle.waiting},
        "dominant": time.dominant,
        "tokens_per_s_per_gpu": plan.tokens_per_second_per_gpu,
        "gpu_hours": plan.gpu_hours,
        "levers": {"taken": plan.levers, "line": levers_in_words(plan)},
        "changes": {phase.name: plan.changes(phase) for phase in plan.misfits},
        "said": plan.said,
    }


def _stage(stage) -> dict:
    def sent(counts) -> list[dict]:
        return [
            {
                "operation": collective.operation,
                "ranks": list(collective.ranks),
                "count": count,
                "bytes": counts.sent_bytes[collective],
            }
            for collective, count in counts.collectives.items()
            if len(collective.ranks) > 1
        ]

    counts = stage.micro_batch
    return {
        "tokens": stage.tokens,
        "gemm_flops": counts.gemm_flops,
        "attention_flops": counts.attention_flops,
        "peak_bytes": stage.peak_bytes,
        "collectives": sent(counts),
        "collectives_of_a_step": sent(stage.gradients) + sent(stage.step),
    }
