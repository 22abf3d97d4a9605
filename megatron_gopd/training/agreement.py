"""That the rollout engine and the trainer mean the same by the same weights."""

from __future__ import annotations

import numpy as np

from megatron_gopd.config.schema import Rollout
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies.update import Update
from megatron_gopd.training.job import Job

START_TOKENS = 300  # of prompts, that both score before the first step


def compare_at_start(job: Job) -> None:
    """Two readers of one folder, the engine and the trainer, on real prompts, before the first step. Collective.

    Raises UserError, with the worst token: they differ by more, on average, than precision explains.
    """
    rows, prompts = _start_rows(job.loader.prompts)
    if job.rollout is None or not rows:
        return
    theirs, ours = job.rollout.logprobs(rows), job.student.score(rows, 1.0)
    gaps = [np.abs(one - other) for one, other in zip(theirs, ours, strict=True)]
    mean, ceiling = float(np.concatenate(gaps).mean()), job.config.rollout.start_logprob_abs_diff
    if mean <= ceiling:
        return
    row = int(np.argmax([gap.max() for gap in gaps]))
    token = int(gaps[row].argmax())
    number = int(rows[row].response_tokens[token])
    raise UserError(
        f"before the first step engine and trainer disagree by {mean:.3g} nats a token on prompts of the run, more "
        f"than rollout.start_logprob_abs_diff ({ceiling:g}), and most on token {token + 1} "
        f"({job.tokenizers.student.decode([number])!r}, id {number}) of prompt {prompts[row].id!r}: "
        f"{theirs[row][token]:.4f} by the engine, {ours[row][token]:.4f} by the trainer. {_way_out(job)}"
    )


def _start_rows(prompts: list[Prompt]) -> tuple[list[Row], list[Prompt]]:
    """Prompts from their second token on, until START_TOKENS are reached; and whose they are."""
    rows, whose, left = [], [], START_TOKENS
    for prompt in prompts:
        tokens = prompt.student_tokens[: left + 1]
        if len(tokens) > 1:
            rows.append(Row(tokens[:1], tokens[1:]))
            whose.append(prompt)
            left -= len(tokens) - 1
        if left <= 0:
            break
    return rows, whose


def _way_out(job: Job) -> str:
    if Architecture.read(job.config.student.model).experts:
        return (
            "Engines route tokens to other experts now and then, which alone is up to 0.4 nats: if the engine holds "
            "these weights, raise rollout.start_logprob_abs_diff"
        )
    return "Do both read student.model, in the same precision? Raise rollout.start_logprob_abs_diff if this is expected"


def refuse_disagreement(batch: list[Trajectory], update: Update, rollout: Rollout, tokenizer) -> None:
    """Raises UserError, with the worst token, where the log-probs of one differ by more than the ceiling.

    Beside the proofs of updates (rollout/server_weights.py), every token of a batch is a probe of the servers' weights.
    """
    gaps = [np.abs(ours - each.behaviour_logprobs) for ours, each in zip(update.logprobs, batch, strict=True)]
    row = int(np.argmax([gap.max() for gap in gaps]))
    token, mean = int(gaps[row].argmax()), float(np.concatenate(gaps).mean())
    worst, ceiling = gaps[row][token], rollout.max_logprob_abs_diff
    where = _shown(batch[row], token, update.logprobs[row], tokenizer)
    if ceiling is not None and worst > ceiling:
        raise UserError(
            f"engine and trainer disagree by {worst:.3g} nats, more than rollout.max_logprob_abs_diff ({ceiling:g}), "
            f"on {where}. Do both hold the same weights, in the same precision? Raise the ceiling if this much is "
            f"expected"
        )
    proved = rollout.engine == "sglang" and rollout.sglang.verify_every
    if proved and not rollout.max_staleness and mean > rollout.start_logprob_abs_diff:  # older weights may differ more
        raise UserError(
            f"the rollout servers do not sample with the student's weights: engine and trainer disagree by {mean:.3g} "
            f"nats a token, more than rollout.start_logprob_abs_diff ({rollout.start_logprob_abs_diff:g}), and most on "
            f"{where}. Are they servers of "
            f"student.model, with options that leave its distribution as it is? rollout.sglang.verify_every: 0 turns "
            f"this check off"
        )


def _shown(trajectory: Trajectory, token: int, logprobs: np.ndarray, tokenizer) -> str:
    number, versions = int(trajectory.response_tokens[token]), trajectory.weight_versions
    held = "" if versions is None else f" with weights {versions[token]}"
    return (
        f"response token {token} ({tokenizer.decode([number])!r}, id {number}) of prompt {trajectory.prompt.id!r}: "
        f"{trajectory.behaviour_logprobs[token]:.4f} by the engine{held}, "
        f"{logprobs[token]:.4f} by the trainer"
    )
