"""A run of make bench-async: its configuration, its process, and what it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml

from megatron_gopd.plan.steady import Setting
from megatron_gopd.runs.trajectories import steps_kept
from scripts.bench.chain_model import STATES
from scripts.bench.core_share import CoreShare

ROOT = Path(__file__).parents[2]
BATCH, PLACES, PROMPTS = 16, 64, 192
HOLD, MEAN_STATE, LAST_STATE = 10, 10, 56  # responses of 100 tokens on average, and of 560 at most
WARM_UP, STEPS = 6, 2 * PROMPTS // BATCH
ALL_STEPS = WARM_UP + STEPS + 4  # K: the last ones begin nothing any more


@dataclass(frozen=True)
class Run:
    """What a run did after its first steps."""

    step_s: float
    rows: list[dict]  # of metrics.jsonl
    looked_at: list[list[int]]  # lengths of the responses of each step
    lengths: list[list[int]]  # and those of all steps, from the first on
    beside_s: float  # of a step, in no phase: metrics, kept responses
    server: float  # share of its core that the server got while it wanted it
    trainer: float


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within the block runs on it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(folder: Path, setting: Setting, url: str, core: int, server: list[int]) -> Run:
    """On `core`; `server`: the processes of the server behind `url`. Models and prompts lie beside the new `folder`."""
    name = f"k{setting.max_staleness}"
    folder.mkdir()
    ahead = {key: value for key, value in vars(setting).items() if value is not None and setting.max_staleness}
    fp32 = {"dtype": "float32"}
    config = {
        "run": {"name": name, "steps": ALL_STEPS, "folder": str(folder), "device": "cpu"},
        "student": {"model": str(folder.parent / "student")} | fp32,
        "teachers": {"one": {"model": str(folder.parent / "teacher")} | fp32},
        "algorithm": {"lambda": 1.0},
        "data": {"train": str(folder.parent / "prompts.jsonl"), "batch_size": BATCH},
        "rollout": {"engine": "sglang", "max_response_tokens": 2 * HOLD * STATES, "max_batch_size": PLACES} | ahead,
        "optimizer": {"lr": 1e-12},  # the lengths are to stay what they are
        "checkpoint": {"every": 0},
        "logging": {"trajectories": {"per_teacher": BATCH}},
    }
    config["rollout"]["sglang"] = {"urls": [url], "verify_every": 0}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    command = ["taskset", "-c", str(core), sys.executable, "-m", "megatron_gopd", "train", str(folder / f"{name}.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    log = folder / f"{name}.log"
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        came = times_of_rows(folder / name / "metrics.jsonl", process)
        before = list(islice(came, WARM_UP))
        shares = CoreShare(server), CoreShare([process.pid])
        after = list(islice(came, STEPS))
        got = [share.get() for share in shares]
        list(came)
    if process.returncode:
        raise SystemExit(f"bench-async: {name} ended with exit code {process.returncode}:\n{log.read_text()[-2000:]}")
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    step_s, looked_at = (after[-1] - before[-1]) / STEPS, slice(WARM_UP, WARM_UP + STEPS)
    phases = [row[f"timing/{phase}_s"] for row in rows[looked_at] for phase in ("rollout", "score", "train", "sync")]
    lengths = [lengths_of(file) for _, file in sorted(steps_kept(folder / name / "trajectories").items())]
    return Run(step_s, rows[looked_at], lengths[looked_at], lengths, step_s - sum(phases) / STEPS, *got)


def times_of_rows(metrics: Path, process: subprocess.Popen) -> Iterator[float]:
    """When each row came, seconds."""
    seen = 0
    while process.poll() is None:
        time.sleep(0.05)
        rows = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        yield from [time.monotonic()] * (rows - seen)
        seen = rows


def lengths_of(file: Path) -> list[int]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return pc.list_value_length(pq.read_table(file, columns=["response_tokens"])["response_tokens"]).to_pylist()
