"""A run of make bench-async and its server: they are stopped and go on, a few steps at a time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from megatron_gopd.plan.steady import Setting
from megatron_gopd.runs.trajectories import steps_kept
from scripts.bench.chain_model import STATES
from tests.servers.real_server import real_server

ROOT = Path(__file__).parents[2]
BATCH, PLACES, PROMPTS = 16, 64, 192
HOLD, MEAN_STATE, LAST_STATE = 10, 10, 56  # responses of 100 tokens on average, and of 560 at most
POLL_S, START_S = 0.005, 300
MANY = 10**6  # steps, of a run that is ended from outside


class Turns:
    """Processes that stand still outside turn(). All are of this machine, and hear nothing of the time between."""

    def __init__(self, processes: list[psutil.Process]):
        self._processes = processes
        self._signal(signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def leave(self) -> None:
        """They go on for good."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@dataclass
class Measured:
    """What a run did in its turns, after the first ones."""

    setting: Setting
    before: int  # steps
    seconds: float = 0.0
    steps: int = 0
    rows: list[dict] = field(default_factory=list)  # of metrics.jsonl, of those steps
    lengths: list[list[int]] = field(default_factory=list)  # of their responses

    @property
    def step_s(self) -> float:
        return self.seconds / self.steps

    @property
    def beside_s(self) -> float:
        """Seconds of a step in no phase: metrics, kept responses."""
        return self.step_s - sum(map(self.mean, ("rollout", "score", "train", "sync")))

    def mean(self, phase: str) -> float:
        return sum(row[f"timing/{phase}_s"] for row in self.rows) / len(self.rows)


class Run:
    """A trainer on the first core and its server on the last one. From the constructor on they stand still."""

    def __init__(self, folder: Path, setting: Setting, stack: contextlib.ExitStack):
        """Models and prompts lie beside the new `folder`; the processes end with `stack`."""
        folder.mkdir()
        url, server = start_server(folder / "server.log", folder.parent / "student", stack)
        self._out = folder / "run"
        with on_core(0):
            self._trainer = stack.enter_context(_trainer(_write_config(folder, setting, url), folder / "trainer.log"))
        self._measured, self._seen = Measured(setting, before=0), 0
        self._wait_for(1)
        trainer = psutil.Process(self._trainer.pid)
        self._turns = Turns([trainer, *trainer.children(recursive=True), *server])
        stack.callback(self._turns.leave)

    def turn(self, steps: int, *, measured: bool = True) -> None:
        """So many steps, from the end of one to that of another."""
        start = time.monotonic()
        with self._turns.turn():
            self._wait_for(self._seen + steps)
        if not measured:
            self._measured.before = self._seen
            return
        self._measured.seconds += time.monotonic() - start
        self._measured.steps = self._seen - self._measured.before

    def told(self) -> Measured:
        """Of all turns, which have come to their end."""
        one = self._measured
        looked_at = slice(one.before, one.before + one.steps)
        one.rows = [json.loads(line) for line in (self._out / "metrics.jsonl").read_text().splitlines()][looked_at]
        files = list(steps_kept(self._out / "trajectories").values())[looked_at]
        one.lengths = [lengths_of(file) for file in files]
        return one

    def _wait_for(self, rows: int) -> None:
        metrics, deadline = self._out / "metrics.jsonl", time.monotonic() + START_S
        while self._seen < rows:
            time.sleep(POLL_S)
            self._seen = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            if self._trainer.poll() is not None or time.monotonic() > deadline:
                log = (self._out.parent / "trainer.log").read_text()[-2000:]
                raise SystemExit(f"bench-async: the run ended, or made no step in {START_S} s:\n{log}")


def start_server(log: Path, model: Path, stack: contextlib.ExitStack) -> tuple[str, list[psutil.Process]]:
    """On the last core: its URL, and its processes, which end with `stack`."""
    with on_core(-1):
        url = stack.enter_context(real_server(model, log, {"max-running-requests": PLACES}))
    newest = max(psutil.Process().children(), key=psutil.Process.create_time)
    return url, [newest, *newest.children(recursive=True)]


@contextmanager
def on_core(number: int) -> Iterator[None]:
    """What is started within the block runs on that one of this process's cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _trainer(config: Path, log: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "megatron_gopd", "train", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("w") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.kill()


def _write_config(folder: Path, setting: Setting, url: str) -> Path:
    ahead = {key: value for key, value in vars(setting).items() if value is not None and setting.max_staleness}
    fp32 = {"dtype": "float32"}
    config = {
        "run": {"name": "run", "steps": MANY, "folder": str(folder), "device": "cpu"},
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
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def lengths_of(file: Path) -> list[int]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return pc.list_value_length(pq.read_table(file, columns=["response_tokens"])["response_tokens"]).to_pylist()
