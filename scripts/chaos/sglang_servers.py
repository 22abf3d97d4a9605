"""Rollout servers killed, stopped, failing and full in the middle of runs; every prompt must still be trained on once.

Called by make chaos-sglang; needs no GPU. Ends with one line that sums up, exit code 0 when every round holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.chat_models import save_chat_model, write_questions  # noqa: E402
from tests.servers.real_server import Proxy, real_server  # noqa: E402

STEPS, BATCH = 4, 8
UPDATE = "/update_weights_from_disk"
Strike = Callable[[subprocess.Popen, Path, random.Random], str]


class Scene:
    """Models, prompts, a server that the runs do not start, and what a run of them left behind."""

    def __init__(self, folder: Path, external: str, chance: random.Random):
        self.folder, self.external, self.chance = folder, external, chance
        models = {"student": {}, "teacher": {"seed": 2}, "wide": {"num_hidden_layers": 3}, "letters": {"letters": 280}}
        self.models = {name: save_chat_model(folder / name, **{"seed": 1} | of) for name, of in models.items()}
        self.questions = write_questions(folder / "train.jsonl", STEPS * BATCH)
        self._numbers = itertools.count()

    def run(self, strike: Strike, rollout: dict, student: str = "student", **sglang) -> Outcome:
        """A run of STEPS steps, struck on the way; `sglang` are settings of its servers."""
        name = f"run-{next(self._numbers)}"
        path = self.folder / f"{name}.yaml"
        servers = {"patience_s": 15, "sync_timeout_s": 60, "verify_every": 1} | sglang
        tree = {
            "run": {"name": name, "steps": STEPS, "folder": str(self.folder / "runs")},
            "student": {"model": str(self.models[student]), "dtype": "float32"},
            "teachers": {"one": {"model": str(self.models["teacher"]), "dtype": "float32"}},
            "data": {"train": str(self.questions), "batch_size": BATCH},
            "rollout": {"engine": "sglang", "max_logprob_abs_diff": 2e-5, "sglang": servers} | rollout,
        }
        path.write_text(yaml.safe_dump(tree))
        # each step's trajectories, and where the run is now: written by the run itself, through run_and_tell
        seen, phase = path.with_suffix(".seen"), path.with_suffix(".phase")
        environment = os.environ | {"CHAOS_SEEN": str(seen), "CHAOS_PHASE": str(phase), "OMP_NUM_THREADS": "1"}
        with path.with_suffix(".out").open("w") as out:
            run = subprocess.Popen(
                [sys.executable, __file__, "--run", str(path)], env=environment, stdout=out, stderr=out
            )
            hit = strike(run, phase, self.chance)
            code = run.wait(900)
        trained = Counter(seen.read_text().splitlines()) if seen.exists() else Counter()
        return Outcome(hit, code, trained, path.with_suffix(".out").read_text())


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


def signalled(phase_name: str, number: signal.Signals, whole_server: bool) -> Strike:
    """A signal to a process, or to all, of one of the servers that the run has started, in step 2 or later."""

    def strike(run: subprocess.Popen, phase: Path, chance: random.Random) -> str:
        wanted = f"{chance.randint(2, STEPS - 1)} {phase_name}"
        while run.poll() is None:
            if phase.exists() and phase.read_text() == wanted:
                time.sleep(chance.uniform(0.0, 0.3 if phase_name == "rollout" else 0.02))
                children = psutil.Process(run.pid).children(recursive=True)
                guards = [child for child in children if "guard.py" in " ".join(child.cmdline())]
                victims = chance.choice(guards).children(recursive=True)
                for process in victims if whole_server else chance.sample(victims, 1):
                    process.send_signal(number)
                return phase.read_text()
            time.sleep(0.001)
        return ""

    return strike


def untouched(run: subprocess.Popen, phase: Path, chance: random.Random) -> str:
    return "all along"


def managed(strike: Strike, **settings) -> Callable[[Scene], tuple[bool, Outcome]]:
    """Servers of the run's own: it starts them anew and ends well, whatever way its weights are updated."""

    def play(scene: Scene) -> tuple[bool, Outcome]:
        drawn = {"sync": scene.chance.choice(["disk", "distributed", "tensor"]), "count": scene.chance.choice([1, 2])}
        print(f"  {drawn}", flush=True)
        outcome = scene.run(strike, {"max_response_tokens": 400}, **drawn | settings)
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
    "a full queue": managed(untouched, options={"max-running-requests": 2, "max-queued-requests": 2}),
    "answers 500": answers_500,
    "external, lost": external_is_lost,
    "another model": another_model,
    "another tokenizer": another_tokenizer,
}


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

    def recording(self, number, batch, *others):
        nonlocal step
        with seen.open("a") as file:
            file.writelines(json.dumps([each.prompt.id, each.sample]) + "\n" for each in batch)
        record(self, number, batch, *others)
        step = number + 1

    recorder.Recorder.phase, recorder.Recorder.step = telling, recording
    with ranks():
        distill.distill(load_config(path))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2, help="of each fault; default 2")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments; default: another")
    parser.add_argument("--only", choices=FAULTS, help="one fault")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_and_tell(options.run)
        return
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student = save_chat_model(folder / "served", seed=1)
        with real_server(student, folder / "server.log") as external:
            scene = Scene(folder, external, random.Random(options.seed))
            for fault in [options.only] if options.only else FAULTS:
                for _ in range(options.rounds):
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
    holds = all(results)
    print(
        f"chaos-sglang: {sum(results)} of {len(results)} rounds hold (seed {options.seed}): "
        f"{'holds' if holds else 'FAILS'}"
    )
    sys.exit(not holds)


if __name__ == "__main__":
    main()
