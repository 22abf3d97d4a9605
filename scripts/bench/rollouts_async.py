"""Rollouts ahead of the steps, measured beside what plan's simulation says of them.

Called by make bench-async. One real SGLang server on a core, a trainer on another, a tiny model whose responses are
heavy-tailed (chain_model.py). The run at K = 0, first and once more at the end, tells lengths, seconds of score, update
and sync, and the server's speed by the number of sequences; from these the simulation tells the steps a minute of all
settings. On a busy machine each side gets a share of its core that differs from run to run: it is read from the kernel,
and the simulation of a setting is given the share that its run had.

Prints a table and one line that sums up; exit code 0 when no prediction is off by more than the bound.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from megatron_gopd.plan.pipeline import Costs, Pipeline  # noqa: E402
from megatron_gopd.plan.server_clock import Speed  # noqa: E402
from megatron_gopd.plan.steady import Setting, summary  # noqa: E402
from megatron_gopd.plan.workload import log_normal  # noqa: E402
from scripts.bench import async_run  # noqa: E402
from scripts.bench.async_run import BATCH, HOLD, PLACES, STEPS, WARM_UP, Run  # noqa: E402
from scripts.bench.chain_model import PROMPT_TOKENS, STATES, save_chain_model, write_prompts  # noqa: E402
from tests.servers.real_server import real_server  # noqa: E402

BOUND = 0.15  # of the measured steps a minute
SETTINGS = [Setting(), Setting(1, 1.25), Setting(2, 1.25), Setting(4, 1.25)]
PROBES, PROBE_TOKENS = 5, 1024


def main() -> int:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench-async: server and trainer need a core each, and this process has one")
    states = np.rint(log_normal(async_run.MEAN_STATE, async_run.LAST_STATE, async_run.PROMPTS)).astype(int).tolist()
    with tempfile.TemporaryDirectory(prefix="bench-async-") as name, ExitStack() as stack:
        folder = Path(name)
        student = save_chain_model(folder / "student", HOLD)
        save_chain_model(folder / "teacher", 1.2 * HOLD)
        write_prompts(folder / "prompts.jsonl", states)
        with async_run.on_core(cores[-1]):
            options = {"max-running-requests": PLACES}
            url = stack.enter_context(real_server(student, folder / "server.log", options))
        server = [child.pid for child in psutil.Process().children(recursive=True)]
        each = enumerate([*SETTINGS, SETTINGS[0]])
        measured = [async_run.run(folder / str(n), setting, url, cores[0], server) for n, setting in each]
        prompt_token_s = seconds_of_a_prompt_token(url)
    measured[0] = base = both(measured[0], measured.pop())
    costs = calibrated(base, prompt_token_s)
    slower = [(base.server / one.server, base.trainer / one.trainer) for one in measured]
    simulated = [predicted(at(costs, *so), setting, base) for setting, so in zip(SETTINGS, slower, strict=True)]
    return report(measured, simulated)


def both(one: Run, other: Run) -> Run:
    mean = {key: (vars(one)[key] + vars(other)[key]) / 2 for key in ("step_s", "beside_s", "server", "trainer")}
    return Run(rows=one.rows + other.rows, looked_at=one.looked_at + other.looked_at, lengths=one.lengths, **mean)


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
    # what begins is a pass of the server; the rest of the constant is the trainer's, which hears late of what is there
    speed = Speed(PLACES, lambda n, held: step + sequence * n, lambda held: step + prompt_token_s * held)
    heard = max(0.0, batch - BATCH * speed.prefill_seconds(PROMPT_TOKENS))
    return Costs(1, speed, mean["score"] / positions, mean["train"] + base.beside_s + heard, mean["sync"])


def at(costs: Costs, server: float, trainer: float) -> Costs:
    """With a server and a trainer that many times slower."""
    speed = replace(
        costs.speed,
        step_seconds=lambda n, held: server * costs.speed.step_seconds(n, held),
        prefill_seconds=lambda tokens: server * costs.speed.prefill_seconds(tokens),
    )
    seconds = {key: trainer * getattr(costs, key) for key in ("score", "update", "sync")}
    return replace(costs, speed=speed, **seconds)


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
    for setting, one, step_s in zip(SETTINGS, measured, simulated, strict=True):
        off.append(one.step_s / step_s - 1)
        stale = [np.mean([row["staleness_mean"] for row in one.rows]), max(row["staleness_max"] for row in one.rows)]
        gains = [measured[0].step_s / one.step_s, simulated[0] / step_s]
        setting = (setting.max_staleness, setting.over_sampling)
        got = f"{one.server:.0%}, {one.trainer:.0%}"
        rows.append(
            (*setting, got, 60 / one.step_s, 60 / step_s, f"{off[-1]:+.0%}", *gains, float(stale[0]), int(stale[1]))
        )
    columns = ["K", "over-sampling", "cores got", "steps a minute", "simulated", "off by", "over K = 0", "simulated"]
    columns += ["staleness", "at most"]
    print_table(f"{BATCH} prompts a step, {STEPS} steps", columns, rows)
    worst, gains = max(map(abs, off)), ", ".join(f"{row[6]:.2f} at K = {row[0]}" for row in rows[1:])
    print(
        f"bench-async: steps a minute over K = 0: {gains}; the simulation is off by at most {worst:.0%} (bound "
        f"{BOUND:.0%}), at load {os.getloadavg()[0]:.0f}: {'holds' if worst <= BOUND else 'MISSED'}"
    )
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
