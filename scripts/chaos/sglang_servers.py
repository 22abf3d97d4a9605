"""Rollout servers killed, stopped, failing and full in the middle of runs; every prompt must still be trained on once.

The run's servers stand on this machine, and on two nodes of a simulated cluster (nodes.py).

Called by make chaos-sglang; needs no GPU. Ends with one line that sums up, exit code 0 when every round holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from scripts.chaos import nodes, telling_run  # noqa: E402
from scripts.chaos.slurm_jobs import Arena  # noqa: E402
from scripts.chaos.telling_run import PHASE, SEEN, THREE  # noqa: E402
from scripts.mini_slurm import MiniSlurm, install, missing  # noqa: E402
from tests.chat_models import save_chat_model, write_questions  # noqa: E402
from tests.servers.real_server import Proxy, real_server  # noqa: E402

STEPS, BATCH = 4, 8
UPDATE = "/update_weights_from_disk"
AHEAD = {"max_staleness": 2, "over_sampling": 1.5, "max_logprob_abs_diff": None}
BUSY = {"max-running-requests": 1}  # servers whose responses see several updates
Strike = Callable[[subprocess.Popen, Path, random.Random], str]


class Scene:
    """Models, prompts, a server that the runs do not start, and what a run of them left behind."""

    def __init__(self, folder: Path, external: str, chance: random.Random):
        self.folder, self.external, self.chance = folder, external, chance
        models = {"student": {}, "teacher": {"seed": 2}, "wide": {"num_hidden_layers": 3}, "letters": {"letters": 280}}
        self.models = {name: save_chat_model(folder / name, **{"seed": 1} | of) for name, of in models.items()}
        self.questions = write_questions(folder / "train.jsonl", STEPS * BATCH)
        self._numbers = itertools.count()

    def run(self, strike: Strike, rollout: dict, student: str = "student", *, steps: int = STEPS, **sglang) -> Outcome:
        """A run, struck on the way; `sglang` are settings of its servers. What SIGKILL ends is started again."""
        name = f"run-{next(self._numbers)}"
        path = self.folder / f"{name}.yaml"
        servers = {"patience_s": 15, "sync_timeout_s": 60, "verify_every": 1} | sglang
        tree = {
            "run": {"name": name, "steps": steps, "folder": str(self.folder / "runs")},
            "student": {"model": str(self.models[student]), "dtype": "float32"},
            "teachers": {"one": {"model": str(self.models["teacher"]), "dtype": "float32"}},
            "data": {"train": str(self.questions), "batch_size": STEPS * BATCH // steps},
            "checkpoint": {"every": 20 if steps == STEPS else 1},
            "rollout": {"engine": "sglang", "max_logprob_abs_diff": 2e-5, "sglang": servers} | rollout,
        }
        path.write_text(yaml.safe_dump(tree))
        seen, phase = path.with_suffix(SEEN), path.with_suffix(PHASE)
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with path.with_suffix(".out").open("w") as out:

            def begun() -> subprocess.Popen:
                return subprocess.Popen(
                    [sys.executable, telling_run.__file__, path], env=environment, stdout=out, stderr=out
                )

            run = begun()
            hit = strike(run, phase, self.chance)
            code = run.wait(1800)
            if code == -signal.SIGKILL:
                code = begun().wait(1800)
        return Outcome(hit, code, trained_on(seen, STEPS * BATCH // steps), path.with_suffix(".out").read_text())


def trained_on(seen: Path, batch: int) -> Counter:
    """How often each trajectory: of a step that was repeated, what the last attempt trained on, which counts."""
    steps = defaultdict(list)
    for line in seen.read_text().splitlines() if seen.exists() else ():
        step, *trajectory = json.loads(line)
        steps[step].append(tuple(trajectory))
    return Counter(trajectory for of_step in steps.values() for trajectory in of_step[-batch:])


class Outcome:
    """What became of a run."""

    def __init__(self, hit: str, code: int, trained: Counter, output: str):
        self.hit, self.code, self.trained, self.output = hit, code, trained, output

    def whole(self) -> bool:
        """It was hit, it finished, and every prompt was trained on once."""
        once = len(self.trained) == STEPS * BATCH and set(self.trained.values()) == {1}
        return bool(self.hit) and self.code == 0 and once

    def told(self, *words: str, code: int = 2) -> bool:
        """It ended with a short message with `words`; exit code 2: of a mistake that a user can mend."""
        brief = len(self.output.splitlines()) <= 25 and "Traceback" not in self.output
        return self.code == code and brief and all(word in self.output for word in words)


def at(phase_name: str, hit: Callable[[subprocess.Popen, random.Random], None]) -> Strike:
    """In step 2 or later; of responses of three versions, in the first step that has them."""

    def strike(run: subprocess.Popen, phase: Path, chance: random.Random) -> str:
        wanted = phase_name if phase_name == THREE else f"{chance.randint(2, STEPS - 1)} {phase_name}"
        while run.poll() is None:
            if phase.exists() and (found := phase.read_text()).endswith(wanted):
                time.sleep(chance.uniform(0.0, 0.3 if phase_name == "rollout" else 0.02))
                hit(run, chance)
                return found
            time.sleep(0.001)
        return ""

    return strike


def signalled(phase_name: str, number: signal.Signals, whole_server: bool) -> Strike:
    """A signal to a process, or to all, of one of the servers that the run has started."""

    def hit(run: subprocess.Popen, chance: random.Random) -> None:
        children = psutil.Process(run.pid).children(recursive=True)
        guards = [child for child in children if "guard.py" in " ".join(child.cmdline())]
        victims = chance.choice(guards).children(recursive=True)
        for process in victims if whole_server else chance.sample(victims, 1):
            process.send_signal(number)

    return at(phase_name, hit)


def untouched(run: subprocess.Popen, phase: Path, chance: random.Random) -> str:
    return "all along"


def managed(
    strike: Strike, rollout: dict | None = None, steps: int = STEPS, **settings
) -> Callable[[Scene], tuple[bool, Outcome]]:
    """Servers of the run's own: it starts them anew and ends well, whatever way its weights are updated."""

    def play(scene: Scene) -> tuple[bool, Outcome]:
        drawn = {"sync": scene.chance.choice(["disk", "distributed", "tensor"]), "count": scene.chance.choice([1, 2])}
        print(f"  {drawn}", flush=True)
        asked = {"max_response_tokens": 400} | (rollout or {})
        outcome = scene.run(strike, asked, steps=steps, **drawn | settings)
        return outcome.whole(), outcome

    return play


def answers_500(scene: Scene) -> tuple[bool, Outcome]:
    """An external server that fails every third request of any kind: asked again, it ends well."""
    from starlette.responses import JSONResponse

    proxy = Proxy(scene.external, lambda path, n: JSONResponse({}, 500) if n % 3 == 0 and path == "/generate" else None)
    outcome = scene.run(untouched, {"max_response_tokens": 40}, urls=[proxy.url])
    proxy.close()
    return outcome.whole(), outcome


def external_is_lost(scene: Scene) -> tuple[bool, Outcome]:
    """An external server that is gone after its third update: waited for, then a checkpoint and a message."""
    from starlette.responses import JSONResponse

    proxy = Proxy(scene.external)
    proxy.fault = lambda path, n: JSONResponse({}, 500) if proxy.paths.count(UPDATE) > 2 and path != UPDATE else None
    outcome = scene.run(untouched, {"max_response_tokens": 40}, urls=[proxy.url], patience_s=4, verify_every=0)
    proxy.close()
    return outcome.told("has not answered for 4 s", "A checkpoint of step 2 is there", code=1), outcome


def another_model(scene: Scene) -> tuple[bool, Outcome]:
    """An external server of a model with a layer less than the student."""
    outcome = scene.run(untouched, {}, student="wide", urls=[scene.external])
    return outcome.told(scene.external, "student's weights"), outcome


def another_tokenizer(scene: Scene) -> tuple[bool, Outcome]:
    """A student whose token ids are not the teacher's."""
    outcome = scene.run(untouched, {}, student="letters", urls=[scene.external])
    return outcome.told("tokenizer"), outcome


FAULTS = {
    "killed in generation": managed(signalled("rollout", signal.SIGKILL, whole_server=False)),
    "killed in an update": managed(signalled("sync", signal.SIGKILL, whole_server=False)),
    "hangs in generation": managed(signalled("rollout", signal.SIGSTOP, whole_server=True)),
    "killed with three versions in flight": managed(
        signalled(THREE, signal.SIGKILL, whole_server=False), AHEAD, steps=2 * STEPS, options=BUSY
    ),
    "the run killed with three versions in flight": managed(
        at(THREE, lambda run, chance: run.kill()), AHEAD, steps=2 * STEPS, options=BUSY
    ),
    "a full queue": managed(untouched, options={"max-running-requests": 2, "max-queued-requests": 2}),
    "answers 500": answers_500,
    "external, lost": external_is_lost,
    "another model": another_model,
    "another tokenizer": another_tokenizer,
}


def on_this_machine(faults: list[str], rounds: int, chance: random.Random) -> list[bool]:
    """Whether each round of faults of FAULTS held."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = save_chat_model(folder / "served", seed=1)
        with real_server(student, folder / "server.log") as external:
            scene = Scene(folder, external, chance)
            for fault in faults * rounds:
                started = time.monotonic()
                good, outcome = FAULTS[fault](scene)
                results.append(good)
                print(
                    f"{fault}: hit at {outcome.hit or 'no moment'}, exit code {outcome.code}, "
                    f"{len(outcome.trained)} of {STEPS * BATCH} prompts trained on, "
                    f"{time.monotonic() - started:.0f} s: {'holds' if good else 'FAILS'}",
                    flush=True,
                )
                if not good:
                    print(outcome.output[-3000:])
    return results


def on_nodes(faults: list[str], rounds: int, chance: random.Random) -> list[bool]:
    """The same for faults of nodes.FAULTS, on a simulated cluster where there can be one."""
    install()
    if reason := missing():
        print(f"left out: {', '.join(faults)}: {reason}")
        return []
    folder = Path(tempfile.mkdtemp(prefix="chaos-sglang-"))
    with MiniSlurm(nodes.NODES, gpus=1) as cluster:
        results = nodes.rounds(Arena(folder, cluster), faults, rounds, chance)
    if all(results):
        shutil.rmtree(folder)
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2, help="of each fault; default 2")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments; default: another")
    parser.add_argument("--only", nargs="+", choices=[*FAULTS, *nodes.FAULTS], help="these faults")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and cluster go too
    chosen, chance, results = options.only or [*FAULTS, *nodes.FAULTS], random.Random(options.seed), []
    for play, known in ((on_this_machine, FAULTS), (on_nodes, nodes.FAULTS)):
        if faults := [fault for fault in chosen if fault in known]:
            results += play(faults, options.rounds, chance)
    holds = all(results)
    print(
        f"chaos-sglang: {sum(results)} of {len(results)} rounds hold (seed {options.seed}): "
        f"{'holds' if holds else 'FAILS'}"
    )
    sys.exit(not holds)


if __name__ == "__main__":
    main()
