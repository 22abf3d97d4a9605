"""Routing replay in numbers: a student with experts and a real SGLang server of the same weights, in two precisions.

Called by make bench-replay; prints a table and one line that sums up; exit code 0 when every bound holds.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.chat_models import save_chat_model, write_questions  # noqa: E402

PROMPTS, TOKENS = 64, 64
FLOAT32, GAIN = 2e-5, 2.0  # nats of float32 at most; in bfloat16, times smaller with replay at least, on average
EXPERTS = {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 48, "norm_topk_prob": True}
MIXTURE = EXPERTS | {"num_hidden_layers": 6, "decoder_sparse_step": 1, "mlp_only_layers": [], "initializer_range": 0.2}


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        student, teacher = (save_chat_model(folder / str(n), seed=n, family="Qwen3Moe", **MIXTURE) for n in (1, 2))
        write_questions(folder / "train.jsonl", PROMPTS)
        from megatron_gopd.ranks import ranks

        with ranks():
            gaps = {dtype: measure(folder, student, teacher, dtype) for dtype in ("float32", "bfloat16")}
    for dtype, of_dtype in gaps.items():
        for kind, gap in of_dtype.items():
            beyond = np.mean(gap > 0.1)
            print(f"  {dtype:9} {kind:16} mean {gap.mean():.2e}  largest {gap.max():.2e} nats, {beyond:6.2%} above 0.1")
    replayed, own = gaps["bfloat16"].values()
    gain, exact = own.mean() / replayed.mean(), gaps["float32"]["replayed"].max()
    holds = gain >= GAIN and exact <= FLOAT32
    print(
        f"bench-replay: |log-prob of engine - trainer| of {len(own)} tokens in bfloat16 {replayed.mean():.2e} with "
        f"replay, {own.mean():.2e} without, {gain:.1f} times as much (bound {GAIN:g}); in float32 with replay at most "
        f"{exact:.1e} (bound {FLOAT32:g}): "
        f"{'holds' if holds else 'MISSED'}"
    )
    return int(not holds)


def measure(folder: Path, student: Path, teacher: Path, dtype: str) -> dict[str, np.ndarray]:
    """{replayed, own choices: |engine - trainer| of every response token, nats}."""
    from megatron_gopd.config import Config
    from megatron_gopd.training.job import build_job

    tree = {
        "run": {"name": dtype, "steps": 1, "folder": str(folder / "runs")},
        "student": {"model": str(student), "dtype": dtype},
        "teachers": {"one": {"model": str(teacher), "dtype": dtype}},
        "data": {"train": str(folder / "train.jsonl"), "batch_size": PROMPTS},
        "rollout": {"engine": "sglang", "max_response_tokens": TOKENS, "replay_routing": True},
    }
    job = build_job(Config.model_validate(tree))
    with job.serving(folder / f"logs-{dtype}"):
        batch = [each for chunk in job.rollout.generate(job.loader.prompts, 1) for each in chunk]
    theirs = np.concatenate([each.behaviour_logprobs for each in batch])
    told = {"replayed": batch, "own choices": [replace(each, routed_experts=None) for each in batch]}
    return {kind: np.abs(np.concatenate(job.student.logprobs(rows)) - theirs) for kind, rows in told.items()}


if __name__ == "__main__":
    sys.exit(main())
