"""make chaos-slurm: batch jobs on a real SLURM cluster of simulated nodes, struck at random moments.

A two-node job of 30 steps, submitted by `megatron-gopd submit`: its node killed, preempted, at its time limit,
cancelled. Every round must end with all steps done, bit by bit the run that nobody disturbed, at most one checkpoint
interval repeated, and no process left behind. And a node with SGLang servers killed (nodes.py). Prints a line a round
and one that sums up; exit code 0 when all hold.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from scripts.mini_slurm import GOING, MiniSlurm, install, until  # noqa: E402
from tests.chat_models import save_chat_model, write_questions  # noqa: E402
from tests.training.runs_on_ranks import TEACHERS, metrics_of, two_teachers  # noqa: E402

EVERY, STEPS, NODES = 5, 30, 2
ROUNDS = {"node": 10, "preempt": 5, "limit": 5, "cancel": 3, "servers": 1}
LOOK_S = 40  # SLURM compares times with limits every 30 s
WAIT_S = 1800  # for anything that must come: the machine may be busy


class Arena:
    """Models, data and configurations of all rounds, and the cluster they run on."""

    def __init__(self, folder: Path, cluster: MiniSlurm):
        self.folder, self.cluster = folder, cluster
        for seed, name in enumerate(("student", "teacher", "other")):
            save_chat_model(folder / name, seed=seed)
        write_questions(folder / "train.jsonl", 192, opd_teacher=lambda number: TEACHERS[number % 2])

    def configuration(self, name: str, kind: str) -> Path:
        models = {model: self.folder / model for model in ("student", "teacher", "other")}
        tree = two_teachers(models, self.folder / "train.jsonl", self.folder / "runs", name)
        tree |= {"run": tree["run"] | {"steps": STEPS}, "checkpoint": {"every": EVERY, "keep": 2}}
        tree["data"]["batch_size"], tree["rollout"]["max_response_tokens"] = SIZES[kind]
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def submit(self, configuration: Path, *options: str | Path) -> str:
        """The job's id."""
        command = [sys.executable, "-m", "megatron_gopd", "submit", configuration, "--nodes", NODES]
        command += ["--gpus-per-node", 1, "--time", 60, "--stop-before", LOOK_S + 70, "--shared-folder", *options]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | self.cluster.environment | {"PYTHONPATH": path}
        told = self.cluster(*command, env=environment, cwd=self.folder, timeout=600)
        return re.match(r"job (\d+)", told)[1]

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def processes(self, configuration: Path) -> list[int]:
        """Of a job's ranks, on any node: the host sees them all."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            ours = any(str(configuration) in part for part in process.info["cmdline"] or ())
            if ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        return found


def steps_done(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def resumed_after(run: Path) -> list[int]:
    """The steps that the later attempts of a run continued after."""
    logs = sorted((run / "slurm").glob("job-*/attempt-*/trainer-*-rank-0.log"), key=lambda log: log.stat().st_mtime)
    return [int(step) for log in logs for step in re.findall(r"continuing after step (\d+)", log.read_text())]


def kill_node(arena: Arena, job: str, chance: random.Random) -> str:
    nodes = arena.cluster("scontrol", "show", "hostnames", arena.cluster.job(job)["NodeList"]).split()
    node = chance.choice(nodes)
    arena.cluster.kill_node(node)
    return f"{node} killed ({'the first' if node == nodes[0] else 'another'} node)"


def preempt(arena: Arena, job: str, chance: random.Random) -> str:
    everything = f"--nodes={arena.cluster.nodes}"
    arena.cluster("sbatch", "--partition=urgent", everything, "--exclusive", "--output=/dev/null", "--wrap", "sleep 2")
    return "preempted"


def reach_limit(arena: Arena, job: str, chance: random.Random) -> str:
    """A limit after SLURM's next look and before --stop-before; for the next attempt, the old one."""
    minutes = int(time.time() - start_of(arena, job) + LOOK_S) // 60 + 1
    arena.cluster("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    until(lambda: restarted_or_ended(arena.cluster.job(job)), WAIT_S, 0.5)
    arena.cluster("scontrol", "update", f"JobId={job}", "TimeLimit=60", check=False)
    return "USR1 before the time limit"


def restarted_or_ended(job: dict[str, str]) -> bool:
    return job["Restarts"] != "0" or not re.fullmatch(GOING, job["JobState"])


def start_of(arena: Arena, job: str) -> float:
    return time.mktime(time.strptime(arena.cluster.job(job)["StartTime"], "%Y-%m-%dT%H:%M:%S"))


def cancel(arena: Arena, job: str, chance: random.Random) -> str:
    arena.cluster("scancel", job)
    return "cancelled"


STRIKES = {"node": kill_node, "preempt": preempt, "limit": reach_limit, "cancel": cancel}
# prompts and response tokens of a step: it must last where SLURM looks only every 2 s (preemption) or 30 s (limits)
SIZES = {"node": (8, 10), "preempt": (32, 10), "limit": (192, 64), "cancel": (8, 10)}
TRIES = 5  # at a round whose strike came after the run had ended


def play(arena: Arena, kind: str, number: int, chance: random.Random, tries: int = TRIES) -> bool:
    """One round: whether all that is promised held."""
    name = f"{kind}-{number}"
    configuration, run, started = arena.configuration(name, kind), arena.run(name), time.monotonic()
    job = arena.submit(configuration)
    moment = chance.randrange(1, STEPS // 3 if kind in ("limit", "preempt") else STEPS - 1)
    if not until(lambda: steps_done(run) >= moment, WAIT_S, 0.01):
        sys.exit(f"{name}: no step {moment} after {WAIT_S} s: see {run / 'slurm'}")
    time.sleep(chance.uniform(0, 0.1))
    before = steps_done(run)
    what = STRIKES[kind](arena, job, chance)
    ended = arena.cluster.wait(job, timeout=WAIT_S)
    orphans = [] if until(lambda: not arena.processes(configuration), 60, 0.5) else arena.processes(configuration)
    if kind == "node":
        arena.cluster.revive()
    if kind == "cancel":
        holds = ended["JobState"] == "CANCELLED" and not orphans and not resumed_after(run)
        said = f"{ended['JobState']}"
    else:
        resumed = resumed_after(run)
        repeated = max(0, before - resumed[0]) if resumed else before
        same = identical(run, arena.run(f"whole-{kind}"))
        attempts = int(ended["Restarts"]) + 1
        graceful = kind in ("preempt", "limit")
        if attempts == 1 and steps_done(run) == STEPS and tries > 1:
            print(f"{name}: {what} at step {before}, too late: the run had ended; again", flush=True)
            shutil.rmtree(run)
            return play(arena, kind, number, chance, tries - 1)
        holds = ended["JobState"] == "COMPLETED" and same and not orphans and attempts > 1
        holds = holds and repeated <= (0 if graceful else EVERY)
        said = (
            f"{ended['JobState']}, {attempts} attempts, repeated {repeated}, {'bitwise equal' if same else 'DIFFERS'}"
        )
    seconds = time.monotonic() - started
    print(f"{name}: {what} at step {before}: {said}, {len(orphans)} orphans, {seconds:.0f} s", flush=True)
    if holds:
        shutil.rmtree(run)
    return holds


def identical(run: Path, other: Path) -> bool:
    try:
        same = metrics_of(run / "metrics.jsonl") == metrics_of(other / "metrics.jsonl")
        weights, others = ((each / "model" / "model.safetensors").read_bytes() for each in (run, other))
    except OSError:
        return False
    return same and weights == others and not any((run / "checkpoints").glob(".step-*"))


def main() -> None:
    parser = argparse.ArgumentParser()
    for kind, rounds in ROUNDS.items():
        parser.add_argument(f"--{kind}", type=int, default=rounds, help=f"rounds; default {rounds}")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments")
    parser.add_argument("--keep", action="store_true", help="the folder of all runs, to look at")
    options = parser.parse_args()
    chance, results = random.Random(options.seed), {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster goes too
    install()
    folder = Path(tempfile.mkdtemp(prefix="chaos-slurm-"))
    with MiniSlurm(NODES + 1, gpus=1) as cluster:
        arena = Arena(folder, cluster)
        kinds = {kind: getattr(options, kind) for kind in STRIKES if getattr(options, kind)}
        for kind in set(kinds) - {"cancel"}:
            ended = cluster.wait(arena.submit(arena.configuration(f"whole-{kind}", kind)), timeout=WAIT_S)
            if ended["JobState"] != "COMPLETED":
                sys.exit(f"the undisturbed run is {ended['JobState']}: see {arena.run(f'whole-{kind}')}")
        for kind, rounds in kinds.items():
            results[kind] = [play(arena, kind, number + 1, chance) for number in range(rounds)]
        if options.servers:
            from scripts.chaos import nodes

            results["servers"] = nodes.rounds(arena, [nodes.NODE], options.servers, chance)
    holds = all(map(all, results.values()))
    if holds and not options.keep:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    said = ", ".join(f"{kind} {sum(rounds)} of {len(rounds)}" for kind, rounds in results.items())
    print(f"chaos-slurm: {said} rounds hold (seed {options.seed}): {'holds' if holds else 'FAILS'}")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
