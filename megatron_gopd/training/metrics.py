"""One row of metrics.jsonl from what a step saw, under the field's names."""

from __future__ import annotations

import numpy as np

from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.policies.student import Update


def step_metrics(step: int, batch: list[Trajectory], update: Update, seconds: dict[str, float]) -> dict[str, float]:
    """Means over the batch's response tokens, nats, of the weights before the update; seconds of each phase."""
    gaps = [ours - trajectory.teacher_logprobs for ours, trajectory in zip(update.logprobs, batch, strict=True)]
    drift = np.abs(_flat(update.logprobs) - _flat(trajectory.behaviour_logprobs for trajectory in batch))
    tokens = sum(map(len, batch))
    metrics = {
        "loss": update.loss,
        "reverse_kl": _mean(gaps),
        "advantage_mean": _mean(update.advantage),
        "entropy": _mean(update.entropy),
        "grad_norm": update.grad_norm,
        "lr": update.lr,
        "response_tokens_mean": tokens / len(batch),
        "truncated_fraction": sum(trajectory.finish_reason == "length" for trajectory in batch) / len(batch),
        "train_rollout_logprob_abs_diff": float(drift.mean()),
        "train_rollout_logprob_abs_diff_max": float(drift.max()),
        "staleness": step - 1 - sum(trajectory.weight_version for trajectory in batch) / len(batch),
    }
    if update.router_drift is not None:
        metrics["router_drift"] = update.router_drift
    rewards = [trajectory.reward for trajectory in batch if trajectory.reward is not None]
    if rewards:
        metrics["reward"] = sum(rewards) / len(rewards)
    for teacher in sorted({trajectory.prompt.teacher for trajectory in batch}):
        taught = [i for i, trajectory in enumerate(batch) if trajectory.prompt.teacher == teacher]
        metrics[f"reverse_kl/{teacher}"] = _mean([gaps[i] for i in taught])
        if rewards := [batch[i].reward for i in taught if batch[i].reward is not None]:
            metrics[f"reward/{teacher}"] = sum(rewards) / len(rewards)
    metrics |= {f"timing/{name}_s": value for name, value in seconds.items()}
    return metrics | {"tokens_per_s": tokens / seconds["step"]}


def _flat(arrays) -> np.ndarray:
    return np.concatenate(list(arrays))


def _mean(arrays: list[np.ndarray]) -> float:
    return float(_flat(arrays).mean(dtype=np.float64))
