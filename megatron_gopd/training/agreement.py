"""That the rollout engine and the trainer mean the same by the same weights."""

from __future__ import annotations

import numpy as np

from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.policies.update import Update


def refuse_disagreement(batch: list[Trajectory], update: Update, ceiling: float | None, tokenizer) -> None:
    """Raises UserError, with the worst token, where the log-probs of one differ by more than `ceiling` nats."""
    if ceiling is None:
        return
    gaps = [np.abs(ours - each.behaviour_logprobs) for ours, each in zip(update.logprobs, batch, strict=True)]
    row = int(np.argmax([gap.max() for gap in gaps]))
    token = int(gaps[row].argmax())
    if gaps[row][token] <= ceiling:
        return
    worst = batch[row]
    text = tokenizer.decode([worst.response_tokens[token]])
    raise UserError(
        f"engine and trainer disagree by {gaps[row][token]:.3g} nats, more than rollout.max_logprob_abs_diff "
        f"({ceiling:g}), on response token {token} ({text!r}, id {worst.response_tokens[token]}) of prompt "
        f"{worst.prompt.id!r}: {worst.behaviour_logprobs[token]:.4f} by the engine with weights "
        f"{worst.weight_version}, {update.logprobs[row][token]:.4f} by the trainer. Do both hold the same weights, in "
        f"the same precision? Raise the ceiling if this much is expected"
    )
