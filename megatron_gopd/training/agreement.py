"""That the rollout engine and the trainer mean the same by the same weights."""

from __future__ import annotations

import numpy as np

from megatron_gopd.config.schema import Rollout
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.policies.update import Update
from megatron_gopd.rollout.probes import OTHER_WEIGHTS


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
    if rollout.engine == "sglang" and rollout.sglang.verify_every and mean > OTHER_WEIGHTS:
        raise UserError(
            f"the rollout servers do not sample with the student's weights: engine and trainer disagree by {mean:.3g} "
            f"nats a token, more than precision explains ({OTHER_WEIGHTS}), and most on {where}. Are they servers of "
            f"student.model, with options that leave its distribution as it is? rollout.sglang.verify_every: 0 turns "
            f"this check off"
        )


def _shown(trajectory: Trajectory, token: int, logprobs: np.ndarray, tokenizer) -> str:
    number = int(trajectory.response_tokens[token])
    return (
        f"response token {token} ({tokenizer.decode([number])!r}, id {number}) of prompt {trajectory.prompt.id!r}: "
        f"{trajectory.behaviour_logprobs[token]:.4f} by the engine with weights {trajectory.weight_version}, "
        f"{logprobs[token]:.4f} by the trainer"
    )
