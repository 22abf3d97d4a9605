"""Update and scoring: tokens/s, MFU, and what each lever buys."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from megatron_gopd.plan.hardware import machine
from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check
from scripts.gpu.checks.sizes import ON_CPU
from scripts.gpu.sections.phases import CHIPS

MODELS = Path(__file__).parents[3] / "examples" / "models"
UPDATE_MFU, SCORE_SHARE, OFFLOAD, FP8 = 0.35, 0.50, 1.3, 1.25
PACKED = 16384  # tokens of a micro-batch
ALL, SOME = 64, 32  # rows of an update
FP8_KEYS = {"fp8": {"recipe": "tensorwise"}}


@dataclass(frozen=True)
class Variant:
    """One run; keys of the student's and the teacher's sections."""

    name: str
    student: dict = field(default_factory=dict)
    teacher: dict = field(default_factory=dict)
    model: str = "dense"
    judge: str = "dense"
    without: str = "-"
    rows: int = SOME
    packed: int = PACKED


BASE = Variant("auto, 64 rows, micro-batches of 16384", rows=ALL)
HALF = Variant("auto, 64 rows, micro-batches of 8192", rows=ALL, packed=PACKED // 2)
WIDE = Variant("bf16, layers of a 4B model", model="wide", judge="wide")
LEVERS = [
    Variant("auto"),
    *(Variant(f"recompute {how}", {"recompute": how}) for how in ("none", "selective", "full")),
    Variant("rope not fused", without="apply_rope_fusion"),
    Variant("SwiGLU not fused", without="bias_activation_fusion"),
    Variant("offload", {"offload": True}, {"offload": True}),
]
OTHERS = [
    WIDE,
    Variant("FP8, layers of a 4B model", FP8_KEYS, FP8_KEYS, model="wide", judge="wide"),
    Variant("FP8", FP8_KEYS, FP8_KEYS),
    Variant("MoE teacher", judge="experts"),
]


def cases(bench: Bench) -> list[Case]:
    return [Case("trainer", each.name, lambda each=each: run(bench, each)) for each in (BASE, HALF, *LEVERS, *OTHERS)]


def run(bench: Bench, variant: Variant) -> list[Check]:
    """Raises Skipped: FP8 where there is none."""
    if "fp8" in variant.student:
        bench.needs_te()
    found = measured(bench, variant)
    tokens = found["tokens"]
    update, score = ({"tokens": tokens} | found[what] for what in ("update", "score"))
    checks = [update_check(bench, variant, update), score_check(bench, variant, score, found["gemm_flops"])]
    if "fp8" in variant.student and variant.model == "wide":
        plain = measured(bench, WIDE)["update"]["seconds"]
        checks.append(ratio("FP8 update over bf16", plain / update["seconds"], FP8, bench.gpu, least=True))
    if variant.student.get("offload"):
        plain = measured(bench, LEVERS[0])["update"]["seconds"]
        checks.append(
            ratio("update with offload over auto", update["seconds"] / plain, OFFLOAD, bench.gpu, least=False)
        )
    return checks


def measured(bench: Bench, variant: Variant) -> dict:
    """What trainer_times.py found of it, run once."""
    return bench.once(f"trainer {variant.name}", lambda: _measured(bench, variant))


def _measured(bench: Bench, variant: Variant) -> dict:
    prompt, response = (128, 896) if bench.gpu else (4, 12)
    rows, packed = (variant.rows, variant.packed) if bench.gpu else (4, 32)
    config = {
        "run": {"name": "bench", "steps": 10, "folder": str(bench.folder / "runs")},
        "student": {"model": str(architecture(bench, variant.model))} | variant.student,
        "teachers": {"one": {"model": str(architecture(bench, variant.judge))} | variant.teacher},
        "algorithm": {"lambda": 1.0},
        "data": {"train": "none.jsonl", "batch_size": rows},
        "training": {"max_tokens_per_micro_batch": packed},
        "checkpoint": {"every": 0, "resume": "never"},
    }
    name = "trainer-" + "".join(c if c.isalnum() else "-" for c in variant.name)
    file = bench.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    return bench.program(
        "trainer_times", file, *map(str, (rows, prompt, response)), variant.without, name=name, alone=True
    )


def update_check(bench: Bench, variant: Variant, found: dict) -> Check:
    peak, mfu = chip_flops(bench), None
    if peak:
        mfu = found["flop"] / found["seconds"] / peak
    judged = mfu is not None and variant in (BASE, HALF)
    told = "" if mfu is None else f", {mfu:.1%} of {peak / 1e12:.0f} TFLOP/s, {found['peak_gib']:.1f} GiB"
    bound = f">= {UPDATE_MFU:.0%}" if judged else ""
    return Check(f"update, {variant.name}", speed(found) + told, bound, mfu >= UPDATE_MFU if judged else None)


def score_check(bench: Bench, variant: Variant, found: dict, gemm: float) -> Check:
    share = found["flop"] / found["seconds"] / gemm
    told = f", {share:.1%} of a bare GEMM's {gemm / 1e12:.3g} TFLOP/s"
    judged = bench.gpu and variant == BASE
    return Check(
        f"score, {variant.name}", speed(found) + told, f">= {SCORE_SHARE:.0%}" if judged else "",
        share >= SCORE_SHARE if judged else None,
    )  # fmt: skip


def speed(found: dict) -> str:
    return f"{found['seconds']:.3f} s, {found['tokens'] / found['seconds']:.0f} tokens/s"


def ratio(name: str, value: float, bound: float, judged: bool, *, least: bool) -> Check:
    told = f"{'>=' if least else '<='} {bound:g}" if judged else ""
    return Check(name, f"{value:.2f}", told, (value >= bound if least else value <= bound) if judged else None)


def chip_flops(bench: Bench) -> float | None:
    """The peak in bf16 that plan knows of this card; None: it knows none, or there is no card."""
    name = bench.facts["gpu"]["name"].lower() if bench.gpu else ""
    chip = next((chip for chip in CHIPS if chip in name), None)
    return machine(chip).chip.bf16_flops if chip else None


def architecture(bench: Bench, kind: str) -> Path:
    """A folder with a config.json: the weights are drawn."""
    folder = bench.folder / f"shape-{kind}"
    return bench.once(f"shape {kind}", lambda: _write(folder, shape(kind, bench.gpu)))


def _write(folder: Path, config: dict) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def shape(kind: str, gpu: bool) -> dict:
    """1.7B dense; some layers of a 4B model; a small mixture of experts. Tiny ones for a CPU."""
    name = {"dense": "Qwen3-1.7B", "wide": "Qwen3-4B", "experts": "Qwen3-30B-A3B"}[kind]
    config = copy.deepcopy(json.loads((MODELS / name / "config.json").read_text()))
    config |= {"dense": {}, "wide": {"num_hidden_layers": 12}, "experts": {"num_hidden_layers": 8, "num_experts": 32}}[
        kind
    ]
    if kind == "experts":
        config["num_experts_per_tok"] = 4
    if gpu:
        return config
    tiny = {
        "vocab_size": ON_CPU.vocabulary, "hidden_size": ON_CPU.hidden, "num_hidden_layers": ON_CPU.layers,
        "num_attention_heads": ON_CPU.heads, "num_key_value_heads": ON_CPU.groups, "head_dim": ON_CPU.head,
        "intermediate_size": ON_CPU.feed_forward,
    }  # fmt: skip
    return config | tiny | ({"num_experts": 4, "moe_intermediate_size": 48} if kind == "experts" else {})
