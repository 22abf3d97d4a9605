"""The plan's model of time and memory beside published measurements: the table of docs/plan.md.

    python scripts/plan/validate.py            # the table, and one line that sums it up; exit code 0 when it holds

Another trainer's row is priced as that trainer works: FSDP gathers and scatters what Megatron's layout would not.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_gopd.config import Config
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan import price
from megatron_gopd.plan.counts import Collective, combined
from megatron_gopd.plan.decode import Engine, parameters
from megatron_gopd.plan.dry_run import Stage, stages
from megatron_gopd.plan.hardware import GIB, Machine, machine
from megatron_gopd.plan.levers import most_frugal
from megatron_gopd.plan.placement import Placement
from megatron_gopd.plan.planned import assemble
from megatron_gopd.plan.roles import Role, roles_of
from megatron_gopd.plan.shares import share
from megatron_gopd.plan.workload import Workload

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(__file__).with_name("published.yaml")
TIME, MEMORY = 0.30, 0.15


def folder_of(name: str, models: dict, scratch: Path) -> Path:
    if name not in models:
        return ROOT / "examples" / "models" / name
    (scratch / name).mkdir(exist_ok=True)
    (scratch / name / "config.json").write_text(json.dumps(models[name]))
    return scratch / name


def trained(folder: Path, **student) -> tuple[Config, Role]:
    config = Config.model_validate(
        {
            "run": {"name": "published", "steps": 1},
            "student": {"model": str(folder), "offload": False} | student,
            "teachers": {"teacher": {"model": "/teacher"}},
            "data": {"train": "none", "batch_size": 1},
        }
    )
    config = most_frugal(config)
    return config, Role(("student",), config.student, Architecture.read(folder))


def fsdp_step(stage: Stage, row: dict, architecture: Architecture, on: Machine) -> float:
    """Two micro-batches of one row: weights gathered in bf16 forward and backward, gradients scattered in bf16."""
    everyone = tuple(range(row["gpus"]))
    messages = {"all_gather": 4 * parameters(architecture), "reduce_scatter": 2 * parameters(architecture)}
    counts = combined([(1, stage.micro_batch)])
    for collective in [c for c in counts.collectives if len(c.ranks) == row["gpus"]]:
        del counts.collectives[collective], counts.sent_bytes[collective]
    if row["gpus"] > 1:
        for operation, sent in messages.items():
            counts.collectives[Collective(operation, everyone)] += architecture.layers
            counts.sent_bytes[Collective(operation, everyone)] += sent
    fsdp = Stage(stage.tokens, counts, stage.gradients, stage.step, stage.peak_bytes)
    state = 12 * parameters(architecture) / row["gpus"]
    optimizer = 2 * state / on.memory_bandwidth + on.seconds.optimizer_step
    return 2 * price.micro_batch_seconds(fsdp, np.array([row["tokens"]]), on) + optimizer


def fsdp_bytes(stage: Stage, row: dict, architecture: Architecture) -> float:
    """Float32 weights, gradients and two moments, sharded; activations; two layers and the embedding gathered."""
    sharded = 16 * parameters(architecture) / row["gpus"]
    embedding = architecture.vocab_size * architecture.hidden_size * (1 if architecture.tied else 2)
    layer = (parameters(architecture) - embedding) / architecture.layers
    gathered = 2 * (2 * layer + embedding) if row["gpus"] > 1 else 0.0
    return sharded + gathered + stage.peak_bytes


def stepped(row: dict, folder: Path) -> Stage:
    config, role = trained(folder, recompute="full")
    return stages(config, role, row["gpus"], row["tokens"])[0]


def decoded(row: dict, folder: Path) -> float:
    """Tokens a second: a step at the mean context, and the prompts' share."""
    engine, on = Engine(Architecture.read(folder), row["tp"]), machine(row["chip"])
    context = row["batch"] * (row["prompt"] + row["output"] / 2)
    seconds = engine.step_seconds(row["batch"], context, on)
    seconds += row["batch"] / row["output"] * engine.prefill_seconds(row["prompt"], on)
    return row["batch"] / seconds


def pretrained(row: dict, folder: Path) -> float:
    """Tokens a second and GPU of Megatron's own training loop."""
    config, role = trained(folder, recompute="none", layout=row["layout"], fp8={} if row["fp8"] else None)
    on, stage = machine(row["chip"]), stages(config, role, row["gpus"], row["tokens"])[0]
    held = share(role.architecture, role.settings, row["gpus"], optimizer="adam")
    rows = np.array([row["tokens"]])
    seconds = row["micro_batches"] * price.micro_batch_seconds(stage, rows, on, fp8=row["fp8"])
    seconds += price.reduction_seconds(stage, on) + price.optimizer_seconds(stage, held.masters + held.moments, on)
    return row["micro_batches"] * row["tokens"] / seconds


def grpo_seconds(row: dict, folder: Path) -> float:
    """A whole step of GRPO with servers on the trainer's GPUs."""
    servers = {"count": row["engines"], "options": {"tp-size": row["tp"]}, "colocated": True, "sync": "distributed"}
    config = Config.model_validate(
        {
            "run": {"name": "published", "steps": 1},
            "student": {"model": str(folder), "layout": row["layout"], "offload": True},
            "algorithm": {
                "type": "grpo",
                "kl_coefficient": 0.01,
                "mini_batches": 4,
                "reference": {"model": str(folder), "layout": row["layout"], "offload": True},
            },
            "data": {"train": "none", "batch_size": row["prompts"], "max_prompt_tokens": row["prompt"]},
            "rollout": {
                "engine": "sglang",
                "sglang": servers,
                "samples_per_prompt": row["samples"],
                "max_batch_size": 256,
                "max_response_tokens": row["longest"] - row["prompt"],
            },
            "training": {"max_tokens_per_micro_batch": row["longest"]},
            "rewards": "math",
        }
    )
    config, on = most_frugal(config), machine(row["chip"])
    roles, engine = roles_of(config), Engine(Architecture.read(folder), row["tp"])
    where = Placement("colocated", row["gpus"], row["engines"], engine)  # of servers on every node
    work = Workload.of(config, row["mean"] - row["prompt"], row["prompt"])
    held = {
        r.name: share(r.architecture, r.settings, row["gpus"], optimizer="adam" if r.trained else None) for r in roles
    }
    stepped = {role.name: stages(config, role, row["gpus"], row["longest"]) for role in roles}
    plan = assemble(config, row["gpus"], on, work, where, roles, {0: held}, stepped, [])
    return plan.time.step


def decoding_rows() -> list[tuple]:
    """(what, source, unit, published, planned, bound, why it may miss) of every decoding row that is reported."""
    published, found = yaml.safe_load(PUBLISHED.read_text()), []
    with TemporaryDirectory() as scratch:
        for row in published["decoding"]:
            if row.get("fit"):
                continue
            speed = decoded(row, folder_of(row["model"], published["models"], Path(scratch)))
            what = f"decode {row['model']}, batch {row['batch']:.0f}, {row['output']} out, {row['tp']} x {row['chip']}"
            found.append((what, row["source"], "tok/s", row["tokens_per_s"], speed, TIME, row.get("why")))
    return found


def main() -> int:
    published = yaml.safe_load(PUBLISHED.read_text())
    found, table = [], []
    with TemporaryDirectory() as scratch:
        cache: dict = {}
        for row in published["training"]:
            folder = folder_of(row["model"], published["models"], Path(scratch))
            key = row["model"], row["gpus"], row["tokens"]
            stage = cache[key] = cache.get(key) or stepped(row, folder)
            architecture = Architecture.read(folder)
            seconds = fsdp_step(stage, row, architecture, machine(row["chip"]))
            found.append((row, stage, architecture))
            if not row.get("fit"):
                what = f"train {row['model']}, {row['tokens'] // 1024}K, {row['gpus']} x {row['chip']}"
                table.append((what, row["source"], "s", row["s"], seconds, TIME, row.get("why")))
        memory = {}
        for row, stage, architecture in found:
            key = row["model"], row["tokens"]
            if key not in memory:
                memory[key] = True
                what = f"memory {row['model']}, {row['tokens'] // 1024}K, {row['gpus']} GPU(s)"
                size = fsdp_bytes(stage, row, architecture) / GIB
                table.append((what, row["source"], "GiB", row["gib"], size, MEMORY, row.get("why_memory")))
        for row in published["pretraining"]:
            speed = pretrained(row, folder_of(row["model"], published["models"], Path(scratch)))
            what = f"pretrain {row['model']}, FP8, {row['gpus']} x {row['chip']}"
            table.append((what, row["source"], "tok/s/GPU", row["tokens_per_s"], speed, TIME, row.get("why")))
        for row in published["grpo"]:
            seconds = grpo_seconds(row, folder_of(row["model"], published["models"], Path(scratch)))
            what = f"GRPO step {row['model']}, {row['gpus']} x {row['chip']}"
            table.append((what, row["source"], "s", row["s"], seconds, TIME, row.get("why")))
    table += decoding_rows()
    if "--dump" in sys.argv:
        Path(sys.argv[sys.argv.index("--dump") + 1]).write_bytes(pickle.dumps(found))
    return report(table)


def report(table: list[tuple]) -> int:
    print("| what | source | unit | published | planned | off | |")
    print("|---|---|---|---|---|---|---|")
    missed = 0
    for what, source, unit, published, planned, bound, why in table:
        off = planned / published - 1
        within = abs(off) <= bound
        missed += not within and not why
        verdict = "" if within else f"miss: {why}" if why else "MISS"
        print(f"| {what} | {source} | {unit} | {published:.4g} | {planned:.4g} | {off:+.0%} | {verdict} |")
    explained = sum(abs(row[4] / row[3] - 1) > row[5] for row in table) - missed
    print(
        f"plan: {len(table)} published rows, {explained} explained misses, {missed} others: "
        f"{'MISSED' if missed else 'holds'}"
    )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
