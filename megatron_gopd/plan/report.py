"""A plan in words."""

from __future__ import annotations

import shlex

from megatron_gopd.plan.exact import told
from megatron_gopd.plan.hardware import GIB
from megatron_gopd.plan.overrides import dotted
from megatron_gopd.plan.planned import Plan, micro_batches_of
from megatron_gopd.plan.search import Found
from megatron_gopd.plan.words import lacking, levers_in_words

SENDERS = 8  # that are named


def show(plan: Plan) -> str:
    """For a person, in Markdown."""
    return "\n\n".join(filter(None, [head(plan), _roles(plan), _memory(plan), _time(plan), _verdict(plan)]))


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
    table = markdown_table(["step s", "layouts", "placement", "engines", "GiB"], rows)
    written = " ".join(shlex.quote(override) for override in dotted(found[0].overrides))
    return f"{len(found)} combinations fit; the fastest:\n\n{table}\n\noverrides of the first:\n\n    {written}"


def head(plan: Plan) -> str:
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
    return markdown_table([*columns, "TFLOP of one", "GB sent in one"], rows)


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
    table = markdown_table(["phase", f"GiB of {usable}", "rank", "what", ""], rows)
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
    of_parts = [_update(plan), _longest(plan), _senders(plan)]
    return "\n\n".join([markdown_table(["phase", "s"], rows), *filter(None, of_parts), *_idle(plan)])


def _update(plan: Plan) -> str:
    """Its parts, which sum up to it."""
    parts = ", ".join(f"{what} {seconds:.2f}" for what, seconds in plan.time.of_update.items() if seconds >= 0.005)
    return f"Of the update, in s: {parts}."


def _senders(plan: Plan) -> str:
    """Who sends the student's weights to servers, and how much."""
    if not (sent := plan.sent_bytes):
        return ""
    ranks = ", ".join(f"{rank} ({size / GIB:.2f})" for rank, size in list(sent.items())[:SENDERS])
    more = f" and {len(sent) - SENDERS} more" if len(sent) > SENDERS else ""
    return f"Ranks that send the weights to the servers, one bucket after the other, GiB: {ranks}{more}."


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
    if why := lacking(plan):
        lines.append(why)
    elif plan.cache_tokens is not None and plan.cache_tokens < plan.longest:
        lines.append(
            f"A server cannot hold one sequence of {plan.longest:,} tokens: raise rollout.sglang.options.tp-size, or "
            f"lower rollout.max_response_tokens."
        )
    return "\n".join(lines)


def _layouts(plan: Plan) -> str:
    return "; ".join(f"{role.names[0]} {layout_in_words(role.settings.layout)}" for role in plan.roles)


def _peak(plan: Plan) -> str:
    return f"{max(phase.bytes for phase in plan.phases) / GIB:.1f}"


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
