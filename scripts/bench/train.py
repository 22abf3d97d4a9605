"""A whole step of ours beside one of TRL's DistillationTrainer: same models, prompts, batch and lengths, in one run.

Called by make bench-train. Each side is a process of its own, in its own environment, and they take turns step by step,
so that both see the same machine. A step is rollout, scores of the teacher, loss, gradient, optimizer, and the new
weights in the rollout. Both are in float32 with lambda = 1 (TRL: beta = 1, the reverse KL) and sample at temperature 1;
TRL's step gets its whole batch at once and no gradient checkpointing, which is its fastest setting here.

Each shape runs on one core and on two, with as many threads: cores and OMP_NUM_THREADS of both sides are set here.

Prints a table of each and one line that sums up; exit code 0 when ours keeps every bound on its share of TRL's time a
response token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
WARM_UP, STEPS = 2, 8
# (prompts, longest response): the models end a response with 2 of their 300 tokens, so 256 is twice the mean length,
# and 32 is reached by most: there is nothing to gain from lengths that differ
SHAPES = {"lengths as drawn": (64, 256), "lengths alike": (256, 32)}
BOUNDS = {  # (shape, cores): of TRL's time; of two, the machine must have as many
    ("lengths as drawn", 1): 0.5,
    ("lengths as drawn", 2): 0.7,
    ("lengths alike", 1): 0.9,
    ("lengths alike", 2): 0.9,
}
SIZES = {"num_hidden_layers": 3, "intermediate_size": 192, "num_key_value_heads": 4}
ENVIRONMENTS = {
    "ours": ROOT / ".venv/bin/python",
    "trl": Path(os.environ.get("BENCH", ROOT / ".venv-bench")) / "bin/python",
}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--side", choices=ENVIRONMENTS, help="be one of the two processes (used by the other call)")
    arguments.add_argument("--folder", type=Path, help="of --side")
    arguments.add_argument("--shape", choices=SHAPES, help="of --side")
    given = arguments.parse_args()
    if given.side:
        return {"ours": run_ours, "trl": run_trl}[given.side](given.folder, *SHAPES[given.shape])
    have, ratios = sorted(os.sched_getaffinity(0)), {}
    for shape, cores in BOUNDS:
        if cores > len(have):
            raise SystemExit(f"bench-train: {cores} cores are compared, and this process has {len(have)}")
        with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
            prepare(Path(folder), SHAPES[shape][0])
            ratios[shape, cores] = report(shape, take_turns(Path(folder), shape, have[:cores]), cores)
    return sum_up(ratios)


def prepare(folder: Path, batch: int) -> None:
    from tests.chat_models import save_chat_model, write_questions

    for seed, name in enumerate(("student", "teacher")):
        save_chat_model(folder / name, seed=seed, **SIZES)
    write_questions(folder / "prompts.jsonl", batch)


def take_turns(folder: Path, shape: str, cores: list[int]) -> dict[str, list[dict]]:
    """{side: what each step after the first ones took}."""
    sides = {name: start(name, folder, shape, cores) for name in ENVIRONMENTS}
    steps: dict[str, list[dict]] = {name: [] for name in sides}
    for turn in range(WARM_UP + STEPS):
        for name, side in sides.items():
            print("go", file=side.stdin, flush=True)
            said = next((line for line in side.stdout if line.startswith('{"seconds"')), None)
            if said is None:
                raise SystemExit(f"bench-train: {name} ended, as it says above")
            if turn >= WARM_UP:
                steps[name].append(json.loads(said))
    for side in sides.values():
        side.stdin.close()
        side.wait()
    return steps


def start(name: str, folder: Path, shape: str, cores: list[int]) -> subprocess.Popen:
    command = [ENVIRONMENTS[name], __file__, "--side", name, "--folder", folder, "--shape", shape]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    environment = os.environ | {"OMP_NUM_THREADS": str(len(cores))}
    return subprocess.Popen(
        ["taskset", "-c", ",".join(map(str, cores)), *command], cwd=folder, env=environment, **pipes
    )


def turn(step: Callable[[], dict]) -> bool:
    """Wait for the other process to say so, then time one step; False when there are no more."""
    if not sys.stdin.readline():
        return False
    start, cpu = time.perf_counter(), time.process_time()
    said = step()
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu} | said), flush=True)
    return True


def run_ours(folder: Path, batch_size: int, max_tokens: int) -> int:
    from megatron_gopd.config import Config
    from megatron_gopd.objective import gopd_loss
    from megatron_gopd.ranks import ranks
    from megatron_gopd.runs import Spans
    from megatron_gopd.training.job import build_job

    config = Config.model_validate(
        {
            "run": {"name": "bench", "steps": WARM_UP + STEPS, "folder": str(folder)},
            "student": {"model": str(folder / "student"), "dtype": "float32"},
            "teachers": {"teacher": {"model": str(folder / "teacher"), "dtype": "float32"}},
            "data": {"train": str(folder / "prompts.jsonl"), "batch_size": batch_size},
            "rollout": {"max_response_tokens": max_tokens, "max_batch_size": batch_size},
        }
    )
    with ranks():
        job, spans = build_job(config), Spans()
        token_loss = gopd_loss(config.algorithm.lambda_, config.algorithm.rollout_correction.cap)

        def step(number: int) -> dict:
            batch = []
            for chunk in spans.over("rollout", job.batches.of(number)):
                with spans("score"):
                    job.scorers.score(chunk)
                batch += chunk
            with spans("train"):
                job.student.update(batch, token_loss)
            with spans("sync"):
                job.rollout.sync(job.student)
            return {"tokens": sum(map(len, batch)), "phases": spans.take()}

        steps = iter(range(1, WARM_UP + STEPS + 1))
        while turn(lambda: step(next(steps))):
            pass
    return 0


def run_trl(folder: Path, batch_size: int, max_tokens: int) -> int:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    class Turns(TrainerCallback):
        """Steps when it is told to, and says what the step took."""

        def on_step_begin(self, args, state, control, **_):
            control.should_training_stop = not sys.stdin.readline()
            self.begun, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, args, state, control, **_):
            seconds = time.perf_counter() - self.begun
            phases = {"rollout": trainer.rollout_s, "score and train": seconds - trainer.rollout_s}
            tokens = round(trainer._metrics["train"]["completions/mean_length"][-1] * batch_size)
            cpu = time.process_time() - self.cpu
            print(json.dumps({"seconds": seconds, "cpu": cpu, "tokens": tokens, "phases": phases}), flush=True)

    class Timed(DistillationTrainer):
        def _generate_and_score_completions(self, inputs):
            begun = time.perf_counter()
            out = super()._generate_and_score_completions(inputs)
            self.rollout_s = time.perf_counter() - begun
            return out

    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])
    settings = DistillationConfig(
        output_dir=str(folder / "trl"),
        max_steps=WARM_UP + STEPS,
        per_device_train_batch_size=batch_size,
        max_completion_length=max_tokens,
        beta=1.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
        chat_template_kwargs={"enable_thinking": False},
    )
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("student", "teacher"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "student", padding_side="left")
    trainer = Timed(student, teacher, settings, data, processing_class=tokenizer, callbacks=[Turns()])
    trainer.train()
    return 0


def report(shape: str, steps: dict[str, list[dict]], cores: int) -> float:
    """The table; returns our time a response token, TRL's being 1."""
    from megatron_gopd.runs import print_table

    rows = []
    for name, taken in steps.items():
        seconds, cpu = (statistics.median(step[key] for step in taken) for key in ("seconds", "cpu"))
        phases = {key: statistics.median(step["phases"].get(key, 0.0) for step in taken) for key in taken[0]["phases"]}
        said = ", ".join(f"{key} {value:.2f}" for key, value in phases.items())
        rows.append((name, seconds, cpu, 1e3 * per_token(taken), sum(s["tokens"] for s in taken) / len(taken), said))
    columns = ["", "seconds", "CPU seconds", "ms a response token", "response tokens", "phases (s)"]
    batch, tokens = SHAPES[shape]
    said = f"{batch} prompts, at most {tokens} tokens each; medians of {STEPS} steps"
    print_table(f"{shape}, {cores} core(s): {said}", columns, rows)
    return per_token(steps["ours"]) / per_token(steps["trl"])


def sum_up(ratios: dict[tuple[str, int], float]) -> int:
    missed = [case for case, ratio in ratios.items() if ratio > BOUNDS[case]]
    said = [
        f"{ratio:.2f} with {shape} on {cores} core(s) (bound {BOUNDS[shape, cores]:.2f})"
        for (shape, cores), ratio in ratios.items()
    ]
    print(f"bench-train: ours takes of TRL's time {', '.join(said)}: {'MISSED' if missed else 'holds'}")
    return int(bool(missed))


def per_token(steps: list[dict]) -> float:
    """Seconds for each response token: the lengths are drawn, and differ a little."""
    return statistics.median(step["seconds"] / step["tokens"] for step in steps)


if __name__ == "__main__":
    sys.exit(main())
