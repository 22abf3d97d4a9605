"""The seconds by phase of make quickstart-smollm2, beside plain transformers doing the same work in the same run.

Called by make bench; prints a table and one line that sums up; exit code 0 when scoring is not slower than
transformers' forward + log_softmax + gather of the same rows.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from megatron_gopd.config import load_config
from megatron_gopd.ranks import ranks

ROUNDS = 3


def main() -> int:
    config = load_config("examples/quickstart_smollm2.yaml")
    with ranks():
        from megatron_gopd.objective import gopd_loss
        from megatron_gopd.runs import print_table
        from megatron_gopd.training.job import build_job

        job = build_job(config)
        token_loss = gopd_loss(config.algorithm.lambda_, 5.0)
        prompts = job.loader.next_batch()
        batch = [trajectory for chunk in job.rollout.generate(prompts, 0) for trajectory in chunk]
        job.scorers.score(batch)
        phases = {
            "rollout": lambda: list(job.rollout.generate(prompts, 1)),
            "rollout (transformers generate)": lambda: generate_plainly(job.rollout, prompts),
            "score (teacher and reference)": lambda: job.scorers.score(batch),
            "score (transformers, the same rows)": lambda: score_plainly(job.rollout.model, batch),
            "train": lambda: job.student.update(batch, token_loss),
            "sync": lambda: job.rollout.sync(job.student),
        }
        seconds = side_by_side(phases)
    tokens = sum(map(len, batch))
    rows = [(name, value, tokens / value) for name, value in seconds.items()]
    print_table(
        f"quickstart-smollm2, seconds a phase (median of {ROUNDS}), {torch.get_num_threads()} threads",
        ["phase", "seconds", "response tokens/s"],
        rows,
    )
    scoring = ratio(seconds, "score (teacher and reference)", "score (transformers, the same rows)")
    rollout = ratio(seconds, "rollout", "rollout (transformers generate)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"bench-phases: scoring takes {scoring:.2f} of transformers' time (bound 1.00), rollout {rollout:.2f}; "
        f"peak RSS {peak:.1f} GiB: {'holds' if scoring <= 1 else 'MISSED'}"
    )
    return int(scoring > 1)


def side_by_side(phases: dict[str, Callable]) -> dict[str, float]:
    """Median seconds of each, the phases taking turns, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    for turn in range(ROUNDS + 1):
        for name, phase in phases.items():
            start = time.perf_counter()
            phase()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, float], ours: str, theirs: str) -> float:
    return seconds[ours] / seconds[theirs]


def generate_plainly(engine, prompts) -> None:
    """transformers' own generate, with the scores a trainer needs."""
    width = max(len(prompt.student_tokens) for prompt in prompts)
    tokens, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt.student_tokens) :] = torch.tensor(prompt.student_tokens)
        mask[row, width - len(prompt.student_tokens) :] = 1
    engine.model.set_attn_implementation("sdpa")
    out = engine.model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=engine.max_response_tokens,
        do_sample=True,
        top_k=0,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    torch.stack(out.logits).float().log_softmax(-1)
    engine.model.set_attn_implementation("grouped_decoding")


@torch.inference_mode()
def score_plainly(model, batch) -> list[np.ndarray]:
    """Forward, log_softmax, gather: as teacher and as reference, right-padded in one batch each."""
    model.set_attn_implementation("sdpa")
    answers = []
    for prompts in ("teacher_tokens", "reference_tokens"):
        rows = [[*getattr(trajectory.prompt, prompts), *trajectory.response_tokens] for trajectory in batch]
        tokens, mask = torch.zeros(2, len(rows), max(map(len, rows)), dtype=torch.long)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        logprobs = model(tokens, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        answers.append(logprobs.gather(2, tokens[:, 1:, None])[..., 0].numpy())
    model.set_attn_implementation("grouped_decoding")
    return answers


if __name__ == "__main__":
    sys.exit(main())
