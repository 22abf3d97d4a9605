"""What every engine makes of a sampled response, and refuses."""

from __future__ import annotations

import numpy as np

from megatron_gopd.data import Prompt, Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.rollout.sampling import Response


def trajectory_of(
    prompt: Prompt, sample: int, response: Response, *, weight_version: int, folder: str, last_id: int
) -> Trajectory:
    """`weight_version`: of the engine, where the response does not tell of each token.

    Raises UserError: a log-prob that is not finite, a token id past `last_id`, the tokenizer's.
    """
    logprobs = response.logprobs
    if not np.isfinite(logprobs).all():
        raise UserError(
            f"{folder}: a token sampled for prompt {prompt.id!r} has log-prob "
            f"{logprobs[~np.isfinite(logprobs)][0]}; the weights hold NaN, or have diverged: lower optimizer.lr"
        )
    if response.tokens.max() > last_id:
        raise UserError(
            f"{folder}: sampled token id {response.tokens.max()}, past the tokenizer's last id "
            f"({last_id}), for prompt {prompt.id!r}; the embedding's padding rows were never trained"
        )
    versions = response.versions or ((weight_version, len(response.tokens)),)
    return Trajectory(
        prompt=prompt,
        sample=sample,
        response_tokens=response.tokens,
        behaviour_logprobs=logprobs,
        finish_reason="stop" if response.finished else "length",
        weight_versions=np.repeat(*np.array(versions, dtype=np.int32).T),
        ended_by_age=response.ended_by_age,
        routed_experts=response.routed_experts,
    )
