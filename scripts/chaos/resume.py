"""make chaos-resume: runs killed with SIGKILL at random moments of a step and of a save, then continued.

Every round must end bitwise equal to the uninterrupted run, with at most `checkpoint.every` steps repeated. Prints a
line a round and one that sums up; exit code 0 when all hold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.chat_models import save_chat_model, write_questions  # noqa: E402
from tests.training.runs_on_ranks import TEACHERS, metrics_of, two_teachers  # noqa: E402

EVERY, STEPS, RANKS = 3, 12, 2
LAYOUTS = {"tp2": {"tp": 2}, "dp2": {}}
MOMENTS = ("step", "save")


@dataclass
class Arena:
    """Models, data and configurations of all rounds."""

    folder: Path

    def configuration(self, name: str, layout: str) -> Path:
        models = {name: self.folder / name for name in ("student", "teacher", "other")}
        tree = two_teachers(models, self.folder / "train.jsonl", self.folder / "runs", name, LAYOUTS[layout])
        tree |= {"run": tree["run"] | {"steps": STEPS}, "checkpoint": {"every": EVERY, "keep": 2}}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name


def build(folder: Path) -> Arena:
    for seed, name in enumerate(("student", "teacher", "other")):
        save_chat_model(folder / name, seed=seed)
    write_questions(folder / "train.jsonl", 8, opd_teacher=lambda number: TEACHERS[number % 2])
    return Arena(folder)


def start(configuration: Path) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command = [*launcher, "--nproc-per-node", str(RANKS), "-m", "megatron_gopd", "train", str(configuration)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with configuration.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def complete(configuration: Path) -> None:
    if code := start(configuration).wait(timeout=300):
        sys.exit(f"{configuration} ended with {code}:\n{configuration.with_suffix('.log').read_text()[-3000:]}")


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher, the ranks and their forked writers."""
    launcher = psutil.Process(process.pid)
    for one in [launcher, *launcher.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def moment(kind: str, run: Path, chance: random.Random) -> Callable[[], bool]:
    """When to strike: once this answers true."""
    if kind == "save":
        nth = chance.randrange(EVERY, STEPS, EVERY)
        return lambda: any((run / "checkpoints").glob(f".step-{nth:08d}-*"))
    nth = chance.randrange(1, STEPS)
    return lambda: steps_done(run) >= nth


def steps_done(run: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def strike(configuration: Path, run: Path, kind: str, chance: random.Random) -> bool:
    """Start the run and kill it; false where it ended before."""
    process, due = start(configuration), moment(kind, run, chance)
    while not due():
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.15))
    struck = process.poll() is None
    kill(process)
    return struck


def play(arena: Arena, number: int, layout: str, kind: str, chance: random.Random) -> tuple[bool, int]:
    """One round: (bitwise equal, steps repeated)."""
    name = f"round-{number}"
    configuration, run, whole = arena.configuration(name, layout), arena.run(name), arena.run(layout)
    while not strike(configuration, run, kind, chance):
        shutil.rmtree(run, ignore_errors=True)
    before = steps_done(run)
    complete(configuration)
    log = configuration.with_suffix(".log").read_text()
    resumed = int(log.rsplit("continuing after step ", 1)[1].split(",")[0]) if "continuing after" in log else 0
    same = metrics_of(run / "metrics.jsonl") == metrics_of(whole / "metrics.jsonl")
    weights, others = ((each / "model" / "model.safetensors").read_bytes() for each in (run, whole))
    same = same and weights == others and not any((run / "checkpoints").glob(".step-*"))
    verdict = "bitwise equal" if same else "DIFFERS"
    print(f"round {number:2d}: {layout}, killed at a {kind}, {before} steps done, resumed after {resumed}: {verdict}")
    return same, before - resumed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; default: another one each time")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(10**6)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        arena = build(Path(folder))
        for layout in LAYOUTS:
            complete(arena.configuration(layout, layout))
        results = []
        for number in range(options.rounds):
            layout, kind = list(LAYOUTS)[number % 2], MOMENTS[number // 2 % 2]
            results.append(play(arena, number + 1, layout, kind, chance))
    equal, repeated = sum(same for same, _ in results), max(repeated for _, repeated in results)
    holds = equal == len(results) and repeated <= EVERY
    print(
        f"chaos-resume: {equal} of {len(results)} rounds bitwise equal (seed {seed}); at most {repeated} steps "
        f"repeated (bound: {EVERY}): {'holds' if holds else 'FAILS'}"
    )
    sys.exit(not holds)


if __name__ == "__main__":
    main()
