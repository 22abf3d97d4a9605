"""A plan as JSON."""

from __future__ import annotations

import json

from megatron_gopd.plan.planned import Plan
from megatron_gopd.plan.words import levers_in_words


def as_json(plan: Plan) -> str:
    return json.dumps(_tree(plan), indent=1)


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
            "of_update": time.of_update,
            "sync": time.sync,
            "overlapped": time.overlapped,
            "step": time.step,
        },
        "sent_bytes": plan.sent_bytes,
        "longest_response_s": plan.longest_response_s if time.rollout else 0.0,
        "idle_gpus": {"unused": plan.where.idle.unused, "waiting": plan.where.idle.waiting},
        "dominant": time.dominant,
        "tokens_per_s_per_gpu": plan.tokens_per_second_per_gpu,
        "gpu_hours": plan.gpu_hours,
        "mem_fraction_static": plan.where.fraction,
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
