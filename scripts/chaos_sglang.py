"""Kills, hangs and failures of rollout servers in the middle of runs; every prompt must still be trained on once.

Called by make chaos-sglang; needs no GPU. Ends with one line that sums up, exit code 0 when every round holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.chat_models import save_chat_model, write_questions  # noqa: E402

STEPS, BATCH = 4, 8
FAULTS = ("kill in generation", "kill in an update", "hang in generation")
MOMENTS = {"kill in generation": "rollout", "kill in an update": "sync", "hang in generation": "rollout"}


def build(folder: Path, sync: str, servers: int) -> Path:
    """Models, prompts and a run's configuration, long enough to be hit."""
    student = save_chat_model(folder / "student", seed=1)
    teacher = save_chat_model(folder / "teacher", seed=2)
    tree = {
        "run": {"name": "chaos", "steps": STEPS, "folder": str(folder / "runs")},
        "student": {"model": str(student), "dtype": "float32"},
        "teachers": {"one": {"model": str(teacher), "dtype": "float32"}},
        "data": {"train": str(write_questions(folder / "train.jsonl", STEPS * BATCH)), "batch_size": BATCH},
        "rollout": {
            "engine": "sglang",
            "max_response_tokens": 400,
            "max_logprob_abs_diff": 2e-5,
            "sglang": {"count": servers, "sync": sync, "patience_s": 15, "sync_timeout_s": 60, "verify_every": 1},
        },
        "checkpoint": {"every": 0},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def play(fault: str, sync: str, servers: int, chance: random.Random) -> bool:
    """One run with one fault at a random moment; whether it ended well, with every prompt trained on once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = build(folder, sync, servers)
        # each step's trajectories, and where the run is now: written by the run itself, through the hook below
        seen, phase = folder / "seen.jsonl", folder / "phase"
        environment = os.environ | {"CHAOS_SEEN": str(seen), "CHAOS_PHASE": str(phase), "OMP_NUM_THREADS": "1"}
        with (folder / "out").open("w") as out:
            run = subprocess.Popen(
                [sys.executable, __file__, "--run", str(path)], env=environment, stdout=out, stderr=out
            )
            hit = strike(run, fault, phase, chance)
            code = run.wait(900)
        trained = Counter(tuple(row) for row in map(json.loads, seen.read_text().splitlines())) if seen.exists() else {}
        rows = folder / "runs" / "chaos" / "metrics.jsonl"
        steps = [json.loads(row)["step"] for row in rows.read_text().splitlines()] if rows.exists() else []
        good = code == 0 and steps == [*range(1, STEPS + 1)] and len(trained) == STEPS * BATCH
        good = good and set(trained.values()) == {1} and hit
        print(
            f"{fault}, sync {sync}, {servers} server(s): hit at {hit or 'no moment'}, exit code {code}, "
            f"{len(trained)} of {STEPS * BATCH} prompts trained on: {'holds' if good else 'FAILS'}",
            flush=True,
        )
        if not good:
            print((folder / "out").read_text()[-3000:])
        return good


def strike(run: subprocess.Popen, fault: str, phase: Path, chance: random.Random) -> str:
    """Wait for the moment in step 2 or later, then hit one server; returns where the run was."""
    wanted = f"{chance.randint(2, STEPS - 1)} {MOMENTS[fault]}"
    while run.poll() is None:
        now = phase.read_text() if phase.exists() else ""
        if now == wanted:
            time.sleep(chance.uniform(0.0, 0.3 if MOMENTS[fault] == "rollout" else 0.02))
            children = psutil.Process(run.pid).children(recursive=True)
            guards = [child for child in children if "guard.py" in " ".join(child.cmdline())]
            victim = chance.choice(guards).children(recursive=True)
            for process in victim if fault.startswith("hang") else chance.sample(victim, 1):
                process.send_signal(signal.SIGSTOP if fault.startswith("hang") else signal.SIGKILL)
            return phase.read_text()
        time.sleep(0.001)
    return ""


def run_and_tell(path: str) -> None:
    """The run itself, telling its phase and each trained trajectory."""
    from megatron_gopd.config import load_config
    from megatron_gopd.ranks import ranks
    from megatron_gopd.training import distill, recorder

    seen, phase = Path(os.environ["CHAOS_SEEN"]), Path(os.environ["CHAOS_PHASE"])
    step = 1
    tell = recorder.Recorder.phase
    record = recorder.Recorder.step

    def telling(self, name):
        temporary = phase.with_suffix(".new")
        temporary.write_text(f"{step} {name}")
        temporary.replace(phase)
        tell(self, name)

    def recording(self, number, batch, *rest):
        nonlocal step
        with seen.open("a") as file:
            file.writelines(json.dumps([each.prompt.id, each.sample]) + "\n" for each in batch)
        record(self, number, batch, *rest)
        step = number + 1

    recorder.Recorder.phase, recorder.Recorder.step = telling, recording
    with ranks():
        distill.distill(load_config(path))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another one each time")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_and_tell(options.run)
        return
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    chance = random.Random(seed)
    plan = [
        (FAULTS[i % 3], ("disk", "distributed", "tensor")[i % 3 - i // 3], 1 + i % 2) for i in range(options.rounds)
    ]
    good = sum(play(*round_, chance) for round_ in plan)
    holds = good == len(plan)
    print(f"chaos-sglang: {good} of {len(plan)} rounds hold (seed {seed}): {'holds' if holds else 'FAILS'}")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
