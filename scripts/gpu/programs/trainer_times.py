"""Updates and scorings of random weights, one after the other: trainer_times.py JOBS FILE

JOBS: a list of {name, config, without, rows, prompt, response}; the config's models need no more than a config.json;
without: a field of Megatron's configuration that is turned off, or -. Writes {name: {update, score, gemm_flops,
tokens}}: of update and score seconds, FLOP (work counted once, whatever is recomputed) and peak_gib; gemm_flops: what a
bare GEMM reaches. Of a job that failed, its error.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.mcore import settings, weights
from megatron_gopd.objective import gopd_loss
from megatron_gopd.ranks import ranks
from scripts.gpu.programs.timing import once, seconds

WARM = 2  # calls before the measured one


def main(jobs: Path, answer: Path) -> None:
    found: dict[str, dict | str] = {}
    with ranks(), mock.patch.object(weights, "load", draw):
        for job in json.loads(jobs.read_text()):
            try:
                with turned_off(job["without"]):
                    found[job["name"]] = figures(job)
            except Exception as error:
                found[job["name"]] = f"{type(error).__name__}: {error}"
            answer.write_text(json.dumps(found))
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def figures(job: dict) -> dict:
    from megatron_gopd.policies.scorers import Scorers
    from megatron_gopd.policies.student import Student

    config, rows, length = Config.model_validate(job["config"]), job["rows"], job["prompt"] + job["response"]
    student, scorers = Student(config), Scorers(config)
    made = trajectories(rows, job["prompt"], job["response"], next(iter(config.teachers)))
    unscored = [replace(row, teacher_logprobs=None, reference_logprobs=None) for row in made]
    loss = gopd_loss(config.algorithm.lambda_, None)
    scoring = sum(flops(model, rows, length) for model in scorers._models.values())
    return {
        "update": measured(lambda: student.update(made, loss), 3 * flops(student.model, rows, length)),
        "score": measured(lambda: scorers.score(unscored), scoring),
        "gemm_flops": bare_gemm(),
        "tokens": rows * length,
    }


def draw(model, folder) -> None:
    """Random weights in place of those of a folder."""
    for param in model.module.parameters():
        with torch.no_grad():
            param.fill_(1.0) if param.dim() == 1 else param.normal_(std=0.02)


def turned_off(field: str):
    plain = settings._of_this_machine
    changed = {} if field == "-" else {field: False}
    return mock.patch.object(settings, "_of_this_machine", lambda *args: plain(*args) | changed)


def trajectories(rows: int, prompt: int, response: int, teacher: str) -> list[Trajectory]:
    random, made = np.random.default_rng(0), []
    for number in range(rows):
        asked, said = (random.integers(3, 100, size=size).tolist() for size in (prompt, response))
        logprobs = np.full(response, -6.0, np.float32)
        scores = {"teacher_logprobs": logprobs - 0.1, "reference_logprobs": logprobs - 0.2}
        shared = Prompt(str(number), [], None, teacher, asked, asked, asked)
        made.append(Trajectory(shared, 0, np.array(said, np.int32), logprobs, "length", **scores))
    return made


def measured(run, work: float) -> dict:
    for _ in range(WARM):
        run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    took = once(run)
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"seconds": took, "flop": work, "peak_gib": peak}


def flops(model, rows: int, length: int) -> float:
    """Of one forward pass: 2 a parameter that a token meets, and causal attention."""
    config = model.config
    attention = config.num_layers * 2 * length * length * config.num_attention_heads * config.kv_channels
    return rows * (2 * met(model) * length + attention)


def met(model) -> float:
    """Parameters a token is multiplied with: the chosen experts' share; the head, and not an embedding of its own."""
    config, count = model.config, 0.0
    for name, parameter in model.module.named_parameters():
        routed = "experts" in name and "shared" not in name
        share = config.moe_router_topk / config.num_moe_experts if routed else 1.0
        separate = "embedding" in name and not model.module.share_embeddings_and_output_weights
        count += 0.0 if separate else share * parameter.numel()
    return count


def bare_gemm() -> float:
    """FLOP/s of a large product in bf16."""
    size, device = (8192, "cuda") if torch.cuda.is_available() else (256, "cpu")
    a = torch.randn(size, size, device=device).bfloat16()
    return 2 * size**3 / seconds(lambda: a @ a)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
