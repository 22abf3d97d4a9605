"""Rollouts ahead of the steps, measured beside what plan's simulation says of them.

Called by make bench-async. One real SGLang server on a core, a trainer on another, a tiny model whose responses are
heavy-tailed (chain_model.py). The run at K = 0, first and once more at the end, tells lengths, seconds of score, update
and sync, and the server's speed by the number of sequences; from these the simulation tells the steps a minute of all
settings. Prints a table and one line that sums up; exit code 0 when no prediction is off by more than the bound.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from megatron_gopd.plan.pipeline import Costs, Pipeline  # noqa: E402
from megatron_gopd.plan.server_clock import Speed  # noqa: E402
from megatron_gopd.plan.steady import Setting, summary  # noqa: E402
from megatron_gopd.plan.workload import log_normal  # noqa: E402
from megatron_gopd.runs.trajectories import steps_kept  # noqa: E402
from scripts.bench.chain_model import PROMPT_TOKENS, STATES, save_chain_model, write_prompts  # noqa: E402
from tests.servers.real_server import real_server  # noqa: E402

BOUND = 0.15  # of the measured steps a minute
SETTINGS = [Setting(), Setting(1, 1.25), Setting(2, 1.25), Setting(4, 1.25)]
BATCH, PLACES, PROMPTS = 16, 64, 192
HOLD, MEAN_STATE, LAST_STATE = 10, 10, 56  # responses of 100 tokens on average, and of 560 at most
WARM_UP, STEPS = 6, 2 * PROMPTS // BATCH
ALL_STEPS = WARM_UP + STEPS + max(setting.max_staleness for setting in SETTINGS)  # the last begin nothing any more
PROBES, PROBE_TOKENS = 5, 1024


@dataclass(frozen=True)
class Run:
    """What a run did after its first steps."""

    step_s: float
    rows: list[dict]  # of metrics.jsonl
    looked_at: list[list[int]]  # lengths of the responses of each step
    lengths: list[list[int]]  # and those of all steps, from the first on
    beside_s: float  # of a step, in no phase: metrics, kept responses


def main() -> int:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench-async: server and trainer need a core each, and this process has one")
    states = np.rint(log_normal(MEAN_STATE, LAST_STATE, PROMPTS)).astype(int).tolist()
    with tempfile.TemporaryDirectory(prefix="bench-async-") as name, ExitStack() as stack:
        folder = Path(name)
        student = save_chain_model(folder / "student", HOLD)
        save_chain_model(folder / "teacher", 1.2 * HOLD)
        write_prompts(folder / "prompts.jsonl", states)
        with on_core(cores[-1]):
            options = {"max-running-requests": PLACES}
            url = stack.enter_context(real_server(student, folder / "server.log", options))
        measured = [run(folder / str(n), each, url, cores[0]) for n, each in enumerate([*SETTINGS, SETTINGS[0]])]
        prompt_token_s = seconds_of_a_prompt_token(url)
    measured[0] = base = both(measured[0], measured.pop())  # a machine that slows down meanwhile does so for all
    costs = calibrated(base, prompt_token_s)
    return report(measured, [predicted(costs, setting, base) for setting in SETTINGS])


def both(one: Run, other: Run) -> Run:
    mean = {key: (getattr(one, key) + getattr(other, key)) / 2 for key in ("step_s", "beside_s")}
    return Run(rows=one.rows + other.rows, looked_at=one.looked_at + other.looked_at, lengths=one.lengths, **mean)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started within the block runs on it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(folder: Path, setting: Setting, url: str, core: int) -> Run:
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
        came = list(times_of_rows(folder / name / "metrics.jsonl", process))
    if process.returncode:
        raise SystemExit(f"bench-async: {name} ended with exit code {process.returncode}:\n{log.read_text()[-2000:]}")
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    looked_at = slice(WARM_UP, WARM_UP + STEPS)
    step_s = (came[WARM_UP + STEPS - 1] - came[WARM_UP - 1]) / STEPS
    phases = [
        sum(row[f"timing/{phase}_s"] for phase in ("rollout", "score", "train", "sync")) for row in rows[looked_at]
    ]
    lengths = [lengths_of(file) for _, file in sorted(steps_kept(folder / name / "trajectories").items())]
    return Run(step_s, rows[looked_at], lengths[looked_at], lengths, step_s - sum(phases) / STEPS)


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


def calibrated(base: Run, prompt_token_s: float) -> Costs:
    """From the run at K = 0, where all responses of a step begin together: a rollout of it takes a constant for each
    decoding step, of which there are as many as the longest response has tokens, one for each token, and one more."""
    longest, tokens = (np.array([do(step) for step in base.looked_at]) for do in (max, sum))
    waits = np.array(
        [row["timing/rollout_s"] + 0.75 * row["timing/score_s"] for row in base.rows]
    )  # a quarter is after
    factors = np.stack([longest, tokens, np.ones(len(tokens))], axis=1)
    step, sequence, batch = nonnegative(factors, waits)
    print(
        f"  decoding: {1e3 * step:.2f} ms + {1e3 * sequence:.2f} ms a sequence; {1e3 * batch:.0f} ms a batch, ", end=""
    )
    print(f"{1e3 * prompt_token_s:.2f} ms a token of a prompt", flush=True)
    mean = {phase: np.mean([row[f"timing/{phase}_s"] for row in base.rows]) for phase in ("score", "train", "sync")}
    positions = tokens.mean() + BATCH * PROMPT_TOKENS
    request = max(0.0, batch / BATCH - PROMPT_TOKENS * prompt_token_s)
    speed = Speed(PLACES, lambda n, held: step + sequence * n, lambda held: request + prompt_token_s * held)
    return Costs(1, speed, mean["score"] / positions, mean["train"] + base.beside_s, mean["sync"])


def nonnegative(factors: np.ndarray, values: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    return nnls(factors, values)[0]


def seconds_of_a_prompt_token(url: str) -> float:
    """How long the server takes to compute one again, as it must at an update."""
    random, taken = np.random.default_rng(0), {}
    for tokens in (PROMPT_TOKENS, PROBE_TOKENS) * PROBES:
        body = {"input_ids": random.integers(1, STATES, tokens).tolist(), "sampling_params": {"max_new_tokens": 1}}
        start = time.perf_counter()
        httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False).raise_for_status()
        taken.setdefault(tokens, []).append(time.perf_counter() - start)
    return max(0.0, min(taken[PROBE_TOKENS]) - min(taken[PROMPT_TOKENS])) / (PROBE_TOKENS - PROMPT_TOKENS)


def predicted(costs: Costs, setting: Setting, base: Run) -> float:
    """Seconds of a step, of the same steps, with the lengths of the run at K = 0 in the order of its batches."""
    random = np.random.default_rng(0)
    ordered = ((float(tokens),) for step in base.lengths for tokens in random.permutation(step))
    steps = Pipeline(costs, setting, BATCH, PROMPT_TOKENS, ordered).run(WARM_UP + STEPS)
    return summary(steps, WARM_UP, 1, setting).step_s


def report(measured: list[Run], simulated: list[float]) -> int:
    from megatron_gopd.runs import print_table

    rows, off = [], []
    for setting, run, step_s in zip(SETTINGS, measured, simulated, strict=True):
        off.append(run.step_s / step_s - 1)
        stale = [np.mean([row["staleness_mean"] for row in run.rows]), max(row["staleness_max"] for row in run.rows)]
        gains = [measured[0].step_s / run.step_s, simulated[0] / step_s]
        setting = (setting.max_staleness, setting.over_sampling)
        rows.append((*setting, 60 / run.step_s, 60 / step_s, f"{off[-1]:+.0%}", *gains, float(stale[0]), int(stale[1])))
    columns = [
        "K",
        "over-sampling",
        "steps a minute",
        "simulated",
        "off by",
        "over K = 0",
        "simulated",
        "staleness",
        "most",
    ]
    print_table(f"{BATCH} prompts a step, {STEPS} steps", columns, rows)
    worst, gains = max(map(abs, off)), ", ".join(f"{row[5]:.2f} at K = {row[0]}" for row in rows[1:])
    print(
        f"bench-async: steps a minute over K = 0: {gains}; the simulation is off by at most {worst:.0%} (bound "
        f"{BOUND:.0%}), at load {os.getloadavg()[0]:.0f}: {'holds' if worst <= BOUND else 'MISSED'}"
    )
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
