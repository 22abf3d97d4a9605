"""Rollouts ahead of the steps, measured beside what plan's simulation says of them.

Called by make bench-async. One real SGLang server on a core, a trainer on another, a tiny model whose responses are
heavy-tailed (chain_model.py). Every setting has its own server and trainer, which take turns of a few steps, so that
all see the same machine, whatever else it does: outside its turn a setting stands still. Between them an idle server
tells its speed by the number of sequences. The run at K = 0 tells lengths, and the seconds of score, update and sync;
from these the simulation tells the steps a minute of all settings.

Prints a table and one line that sums up; exit code 0 when no prediction is off by more than the bound.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from megatron_gopd.plan.pipeline import Costs, Pipeline  # noqa: E402
from megatron_gopd.plan.server_clock import Speed  # noqa: E402
from megatron_gopd.plan.steady import Setting, Simulated, summary  # noqa: E402
from megatron_gopd.plan.workload import log_normal  # noqa: E402
from scripts.bench import async_run  # noqa: E402
from scripts.bench.async_run import BATCH, HOLD, PROMPTS, Measured, Run  # noqa: E402
from scripts.bench.async_speed import Probe  # noqa: E402
from scripts.bench.chain_model import PROMPT_TOKENS, save_chain_model, write_prompts  # noqa: E402

BOUND = 0.15  # of the measured steps a minute
SETTINGS = [Setting(), Setting(1, 1.25), Setting(2, 1.25), Setting(4, 1.25)]
WARM_UP, TURN, TURNS = 6, 4, 9  # steps, steps of a turn, turns: three times through the prompts
SIMULATED = 20 * PROMPTS // BATCH


def main() -> int:
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("bench-async: server and trainer need a core each, and this process has one")
    states = np.rint(log_normal(async_run.MEAN_STATE, async_run.LAST_STATE, PROMPTS)).astype(int).tolist()
    with tempfile.TemporaryDirectory(prefix="bench-async-") as name, ExitStack() as stack:
        folder = Path(name)
        student = save_chain_model(folder / "student", HOLD)
        save_chain_model(folder / "teacher", 1.2 * HOLD)
        write_prompts(folder / "prompts.jsonl", states)
        probe = Probe(folder / "probe", student, stack)
        runs = [Run(folder / f"k{setting.max_staleness}", setting, stack) for setting in SETTINGS]
        for run in runs:
            run.turn(WARM_UP, measured=False)
        for _ in range(TURNS):
            probe.look()
            for run in runs:
                run.turn(TURN)
        measured, speed = [run.told() for run in runs], probe.speed()
    costs = calibrated(measured[0], speed)
    return report(measured, [simulated(costs, one.setting, measured[0]) for one in measured])


def calibrated(base: Measured, speed: Speed) -> Costs:
    """From the run at K = 0. What its servers do not explain of a rollout is the trainer's, which hears late of what is
    there: all responses of a step begin together, and those of a length end together."""
    decoding = np.mean([seconds_of_decoding(lengths, speed) for lengths in base.lengths])
    begun = BATCH * speed.prefill_seconds(PROMPT_TOKENS)
    heard = max(0.0, base.mean("rollout") + 0.75 * base.mean("score") - decoding - begun)  # a quarter is scored after
    positions = sum(map(sum, base.lengths)) / len(base.lengths) + BATCH * PROMPT_TOKENS
    print(f"  a rollout at K = 0: decoding {decoding:.2f} s, prompts {begun:.2f} s, what is left {heard:.2f} s")
    update = base.mean("train") + base.beside_s + heard
    return Costs(1, speed, base.mean("score") / positions, update, base.mean("sync"))


def seconds_of_decoding(lengths: list[int], speed: Speed) -> float:
    ends = np.array([0, *sorted(lengths)])
    left = np.arange(len(lengths), 0, -1)
    return sum(speed.step_seconds(count, 0.0) * steps for count, steps in zip(left, np.diff(ends), strict=True))


def simulated(costs: Costs, setting: Setting, base: Measured) -> Simulated:
    """With the lengths of the run at K = 0, whose batches come again and again, each time in another order."""
    steps = Pipeline(costs, setting, BATCH, PROMPT_TOKENS, in_order(base.lengths)).run(WARM_UP + SIMULATED)
    return summary(steps, WARM_UP, 1, setting)


def in_order(lengths: list[list[int]]) -> Iterator[tuple[float]]:
    random = np.random.default_rng(0)
    while True:
        for step in lengths:
            yield from ((float(tokens),) for tokens in random.permutation(step))


def report(measured: list[Measured], said: list[Simulated]) -> int:
    from megatron_gopd.runs import print_table

    rows, off = [], []
    for one, its in zip(measured, said, strict=True):
        off.append(one.step_s / its.step_s - 1)
        gains = [measured[0].step_s / one.step_s, said[0].step_s / its.step_s]
        stale = [np.mean([row["staleness_mean"] for row in one.rows]), its.staleness_mean]
        setting = (one.setting.max_staleness, one.setting.over_sampling)
        rows.append((*setting, 60 / one.step_s, 60 / its.step_s, f"{off[-1]:+.0%}", *gains, *map(float, stale)))
    columns = ["K", "over-sampling", "steps a minute", "simulated", "off by", "over K = 0", "simulated", "staleness"]
    print_table(f"{BATCH} prompts a step, {TURN * TURNS} steps", [*columns, "simulated"], rows)
    worst, gains = max(map(abs, off)), ", ".join(f"{row[5]:.2f} at K = {row[0]}" for row in rows[1:])
    print(
        f"bench-async: steps a minute over K = 0: {gains}; the simulation is off by at most {worst:.0%} (bound "
        f"{BOUND:.0%}), at load {os.getloadavg()[0]:.0f}: {'holds' if worst <= BOUND else 'MISSED'}"
    )
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
