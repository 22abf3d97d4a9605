"""Seconds and peak memory of each phase of a run, beside what `plan` says of it."""

from __future__ import annotations

import json

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.result import Check
from scripts.gpu.checks.runs import Run, tree
from scripts.gpu.checks.sizes import PROMPT_WORDS

GIB = 2**30
# as a run names them, as a plan does
PHASES = {"rollout": "rollout", "score": "score", "train": "update", "sync": "sync"}
CHIPS = ("a100", "h100", "h200", "b200")
MORE, FIXED_GIB = 1.15, 1.0  # of the plan's memory: what the allocator and the libraries may have beside it


def beside_the_plan(bench: Bench) -> list[Check]:
    """The third step of a larger model; memory must be no more than planned, seconds are told."""
    prompts, response = (32, 128) if bench.gpu and not bench.quick else (16, 64) if bench.gpu else (8, 10)
    given = tree(bench, "phases", dtype="bfloat16", student="large-student", teacher="large-teacher")
    given["data"]["batch_size"], given["rollout"]["max_response_tokens"] = prompts, response
    peaks = bench.folder / "peaks.json"
    run = bench.train(given, alone=bench.gpu, extra={"GPU_CHECK_PEAKS": str(peaks)})
    planned = plan(bench, run)
    found = json.loads(peaks.read_text())
    return [_check(bench, run, found, planned, *names) for names in PHASES.items()]


def plan(bench: Bench, run: Run) -> dict:
    """What `plan` prints for programs; of an H100 where the card is none that it knows."""
    name = (bench.facts["gpu"] or {"name": ""})["name"].lower()
    chip = next((chip for chip in CHIPS if chip in name), "h100")
    tokens = round(run.rows[-1]["response_tokens_mean"])
    means = ["--response-tokens", str(tokens), "--prompt-tokens", str(sum(PROMPT_WORDS) // 2)]
    asked = ["--gpus", "1", "--gpu", chip, *means, "--json"]
    said = bench.verb("plan", "plan", bench.folder / "phases.yaml", *asked)
    return json.loads(said[said.index("{") :])


def _check(bench: Bench, run: Run, peaks: dict, planned: dict, ours: str, theirs: str) -> Check:
    seconds, gib = run.rows[-1][f"timing/{ours}_s"], peaks[ours] / GIB
    expected = planned["seconds"][theirs]
    expected = sum(expected.values()) if isinstance(expected, dict) else expected
    room = sum(planned["memory_bytes"][theirs].values()) / GIB
    told = f"{seconds:.2f} s, {gib:.2f} GiB", f"plan: {expected:.2f} s, {room:.2f} GiB"
    if not bench.gpu:
        return Check(f"{theirs} beside the plan", told[0], f"none; a GPU's {told[1]}", True)
    return Check(f"{theirs} beside the plan", *told, gib <= room * MORE + FIXED_GIB)
