"""Jobs of two nodes with servers on each, struck on the second: faults of make chaos-sglang and make chaos-slurm.

Every round must train on each prompt once, step by step on what the undisturbed job trains on, and leave no process on
any node and no weights behind.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
import time
from collections.abc import Callable

import psutil
import yaml

from scripts.chaos import telling_run
from scripts.chaos.slurm_jobs import WAIT_S, Arena, resumed_after
from scripts.chaos.telling_run import PHASE, SEEN
from scripts.mini_slurm import until
from tests.chat_models import write_questions
from tests.training.runs_on_ranks import TEACHERS, two_teachers

NODES = 3  # of the cluster: one may be killed
STEPS, BATCH, SAMPLES, EVERY = 6, 8, 2, 2
SLOW_S = 30.0
PYTHON = """\
#!/bin/bash
[[ "$*" != "-m megatron_gopd train "* ]] || exec {python} {run} "${{@:4}}"
exec {python} "$@"
"""


class Job:
    """One that tells where it is; see telling_run.py."""

    def __init__(self, arena: Arena, name: str, chance: random.Random):
        self.arena, self.chance, self.run, self.path = arena, chance, arena.run(name), arena.folder / f"{name}.yaml"
        self.sync, self.shared = chance.choice(["disk", "distributed"]), arena.folder / name
        self.path.write_text(yaml.safe_dump(self._settings(name)))
        python = arena.folder / "python.sh"
        python.write_text(PYTHON.format(python=sys.executable, run=telling_run.__file__))
        python.chmod(0o755)
        self.id = arena.submit(self.path, "--python", python)

    def phase(self) -> str:
        """The number of the step and the phase under way; "" before the first."""
        file = self.path.with_suffix(PHASE)
        return file.read_text() if file.exists() else ""

    def reach(self, phase: str) -> None:
        if not until(lambda: self.phase() == phase, WAIT_S, 0.001):
            sys.exit(f"{self.path.stem} is at {self.phase()!r}, not at {phase!r}, after {WAIT_S} s: see {self.run}")

    def second_node(self) -> str:
        nodes = self.arena.cluster.wait(self.id, "RUNNING", WAIT_S)["NodeList"]
        return self.arena.cluster("scontrol", "show", "hostnames", nodes).split()[1]

    def server(self) -> list[psutil.Process]:
        """The processes of the second node's."""
        node, server = self.second_node(), []

        def there() -> list[psutil.Process]:
            with contextlib.suppress(psutil.NoSuchProcess):  # something on the node has ended meanwhile
                processes = map(psutil.Process, self.arena.cluster.processes(node))
                guards = [process for process in processes if "guard.py" in " ".join(process.cmdline())]
                server[:] = [process for guard in guards for process in guard.children(recursive=True)]
            return server

        if not until(there, WAIT_S):
            sys.exit(f"{self.path.stem}: no server on {node} after {WAIT_S} s: see {self.run}")
        return server

    def trained(self) -> list[list[str]]:
        """The trajectories of each step, sorted: they come as they finish."""
        lines = self.path.with_suffix(SEEN).read_text().splitlines()
        return [sorted(lines[at : at + BATCH * SAMPLES]) for at in range(0, len(lines), BATCH * SAMPLES)]

    def _settings(self, name: str) -> dict:
        models = {model: self.arena.folder / model for model in ("student", "teacher", "other")}
        data = write_questions(self.arena.folder / "once.jsonl", STEPS * BATCH, opd_teacher=lambda n: TEACHERS[n % 2])
        tree = two_teachers(models, data, self.arena.folder / "runs", name)
        servers = {"options": {"device": "cpu"}, "patience_s": 15, "sync_timeout_s": 60, "verify_every": 1}
        servers |= {"sync": self.sync, "sync_folder": str(self.shared)}
        rollout = {"engine": "sglang", "max_response_tokens": 400, "samples_per_prompt": SAMPLES, "sglang": servers}
        run = tree["run"] | {"steps": STEPS}
        return tree | {"run": run, "rollout": rollout, "checkpoint": {"every": EVERY, "keep": 2}, "rewards": "none"}


def server_killed(phase: str, moment: Callable[[Job], object]) -> Callable[[Job], str]:
    """All of it at once, at a moment of a phase of step 2 or a later one."""

    def strike(job: Job) -> str:
        job.reach("1 rollout")
        server = job.server()
        job.reach(f"{job.chance.randint(2, STEPS - 1)} {phase}")
        moment(job)
        for process in server:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has gone with another
                process.kill()
        return f"killed at {job.phase()}"

    return strike


def within_a_second(job: Job) -> None:
    time.sleep(job.chance.uniform(0, 1))


def once_weights_are_written(job: Job) -> None:
    """Or, where none are, within a twentieth of a second."""
    seconds = 5 if job.sync == "disk" else job.chance.uniform(0, 0.05)
    until(lambda: list(job.shared.glob("[!.]*")), seconds, 0.001)


def slow_to_start(job: Job) -> str:
    stopped = job.server()
    for process in stopped:
        process.suspend()
    time.sleep(SLOW_S)
    for process in stopped:
        process.resume()
    return f"held for {SLOW_S:g} s of its start"


def node_killed(job: Job) -> str:
    node = job.second_node()
    job.reach(f"{job.chance.randint(3, STEPS - 1)} rollout")
    within_a_second(job)
    job.arena.cluster.kill_node(node)
    return f"{node} killed at {job.phase()}"


NODE = "a node with servers killed"
FAULTS: dict[str, Callable[[Job], str]] = {
    "node 2's server killed in generation": server_killed("rollout", within_a_second),
    "node 2's server killed in an update": server_killed("sync", once_weights_are_written),
    "node 2's server slow to start": slow_to_start,
    NODE: node_killed,
}


def rounds(arena: Arena, faults: list[str], count: int, chance: random.Random) -> list[bool]:
    """Whether each of `count` rounds of each of `faults` held."""
    whole = Job(arena, "undisturbed", chance)
    ended = arena.cluster.wait(whole.id, timeout=WAIT_S)
    every = [trajectory for step in whole.trained() for trajectory in step]
    if ended["JobState"] != "COMPLETED" or len(set(every)) != len(every) or len(every) != STEPS * BATCH * SAMPLES:
        sys.exit(f"the undisturbed job is {ended['JobState']}, {len(every)} trajectories: see {whole.run}")
    return [play(arena, fault, number, whole, chance) for fault in faults for number in range(count)]


def play(arena: Arena, fault: str, number: int, whole: Job, chance: random.Random) -> bool:
    started, cluster = time.monotonic(), arena.cluster
    job = Job(arena, f"nodes-{list(FAULTS).index(fault)}-{number}", chance)
    what = FAULTS[fault](job)
    ended = cluster.wait(job.id, timeout=WAIT_S)

    def left() -> list:
        names = [f"node{each}" for each in range(1, cluster.nodes + 1)]
        return [pid for name in names for pid in cluster.processes(name)] + list(job.shared.glob("*"))

    until(lambda: not left(), 60, 0.5)
    attempts, orphans = int(ended["Restarts"]) + 1, left()
    cluster.revive()
    seen = job.trained()
    same = as_undisturbed(seen, whole.trained(), max(resumed_after(job.run), default=0))
    holds = ended["JobState"] == "COMPLETED" and same and not orphans and (attempts > 1) == (fault == NODE)
    starts, broken = told(job, "rollout-", "server_args="), told(job, "rank-0", "update of weights: ")
    print(
        f"{fault} ({job.sync}): {what}: {ended['JobState']}, {attempts} attempts, {starts} server starts, "
        f"{broken} broken updates, {sum(map(len, seen))} trajectories, {'as' if same else 'NOT as'} undisturbed, "
        f"{len(orphans)} orphans, {time.monotonic() - started:.0f} s: {'holds' if holds else f'FAILS: see {job.run}'}",
        flush=True,
    )
    if holds:
        shutil.rmtree(job.run)
    return holds


def told(job: Job, log: str, words: str) -> int:
    """How often."""
    logs = job.run.glob(f"logs/attempt-*/{log}*.log")
    return sum(each.read_text(errors="replace").count(words) for each in logs)


def as_undisturbed(seen: list[list[str]], whole: list[list[str]], resumed: int) -> bool:
    """Whether the steps were trained on in order; those after step `resumed` perhaps twice."""
    repeated = len(seen) - len(whole)
    return 0 <= repeated <= EVERY and seen == whole[: resumed + repeated] + whole[resumed:]
