"""Update and scoring: tokens/s, MFU, and what each lever buys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

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
# as in examples/models, and what is changed
SHAPES = {
    "dense": ("Qwen3-1.7B", {}),
    "wide": ("Qwen3-4B", {"num_hidden_layers": 12}),
    "experts": ("Qwen3-30B-A3B", {"num_hidden_layers": 8, "num_experts": 32, "num_experts_per_tok": 4}),
}


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
OFFLOADED = [
    Variant(f"offload {how}, 64 rows", {"offload": offload}, {"offload": offload}, rows=ALL)
    for how, offload in (("on demand", True), ("ahead", "ahead"))
]
WIDE = Variant("bf16, layers of a 4B model", model="wide", judge="wide")
LEVERS = [
    Variant("auto"),
    *(Variant(f"recompute {how}", {"recompute": how}) for how in ("none", "selective", "full")),
    Variant("rope not fused", without="apply_rope_fusion"),
    Variant("SwiGLU not fused", without="bias_activation_fusion"),
]
OTHERS = [
    WIDE,
    WIDE_FP8 := Variant("FP8, layers of a 4B model", FP8_KEYS, FP8_KEYS, model="wide", judge="wide"),
    Variant("FP8", FP8_KEYS, FP8_KEYS),
    Variant("MoE teacher", judge="experts"),
]


def cases(bench: Bench) -> list[Case]:
    return [Case("trainer", "update and scoring", lambda: figures(bench))]


def figures(bench: Bench) -> list[Check]:
    """One child takes all variants one after the other: most of a start is imports."""
    fp8 = bench.facts["te_problem"]
    variants = [each for each in (BASE, HALF, *OFFLOADED, *LEVERS, *OTHERS) if not (fp8 and "fp8" in each.student)]
    jobs = bench.folder / "jobs.json"
    jobs.write_text(json.dumps([job(bench, each) for each in variants]))
    found = bench.program("trainer_times", jobs, name="trainer", alone=True)
    checks = [
        check for each in variants for check in of_variant(bench, each, found.get(each.name, "did not get there"))
    ]
    checks += compared(bench, found)
    if fp8:
        return [*checks, Check("FP8", f"skipped: no Transformer Engine: {fp8}", "", None)]
    return checks


def of_variant(bench: Bench, variant: Variant, found: dict | str) -> list[Check]:
    if isinstance(found, str):
        return [Check(variant.name, found, "runs", False)]
    update, score = ({"tokens": found["tokens"]} | found[what] for what in ("update", "score"))
    return [update_check(bench, variant, update), score_check(bench, variant, score, found["gemm_flops"])]


def compared(bench: Bench, found: dict) -> list[Check]:
    """What is asked of two runs together."""
    seconds = {name: each["update"]["seconds"] for name, each in found.items() if isinstance(each, dict)}
    checks = []
    if {WIDE.name, WIDE_FP8.name} <= seconds.keys():
        gain = seconds[WIDE.name] / seconds[WIDE_FP8.name]
        checks.append(ratio("FP8 update over bf16", gain, FP8, bench.gpu, least=True))
    for each in OFFLOADED:
        if {BASE.name, each.name} <= seconds.keys():
            cost = seconds[each.name] / seconds[BASE.name]
            checks.append(ratio(f"update, {each.name}, over auto", cost, OFFLOAD, bench.gpu, least=False))
    return checks


def job(bench: Bench, variant: Variant) -> dict:
    """What trainer_times.py is to do."""
    prompt, response = (128, 896) if bench.gpu else (4, 12)
    rows, packed = (variant.rows, variant.packed) if bench.gpu else (4, 32)
    config = {
        "run": {"name": "bench", "steps": 10, "folder": str(bench.folder / "runs")},
        "student": {"model": str(architecture(bench, variant.model, "student"))} | variant.student,
        "teachers": {"one": {"model": str(architecture(bench, variant.judge, "teacher"))} | variant.teacher},
        "algorithm": {"lambda": 1.0},
        "data": {"train": "none.jsonl", "batch_size": rows},
        "training": {"max_tokens_per_micro_batch": packed},
        "checkpoint": {"every": 0, "resume": "never"},
    }
    sizes = {"rows": rows, "prompt": prompt, "response": response}
    return {"name": variant.name, "config": config, "without": variant.without} | sizes


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


def architecture(bench: Bench, kind: str, whose: str) -> Path:
    """A folder with a config.json: the weights are drawn."""
    folder = bench.folder / f"{kind}-{whose}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape(kind, bench.gpu)))
    return folder


def shape(kind: str, gpu: bool) -> dict:
    """1.7B dense; some layers of a 4B model; a small mixture of experts. Tiny ones for a CPU."""
    name, changed = SHAPES[kind]
    config = json.loads((MODELS / name / "config.json").read_text()) | changed
    if gpu:
        return config
    tiny = {
        "vocab_size": ON_CPU.vocabulary, "hidden_size": ON_CPU.hidden, "num_hidden_layers": ON_CPU.layers,
        "num_attention_heads": ON_CPU.heads, "num_key_value_heads": ON_CPU.groups, "head_dim": ON_CPU.head,
        "intermediate_size": ON_CPU.feed_forward,
    }  # fmt: skip
    return config | tiny | ({"num_experts": 4, "moe_intermediate_size": 48} if kind == "experts" else {})
