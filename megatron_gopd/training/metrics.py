"""One row of metrics.jsonl from what a step saw, under the field's names."""

from __future__ import annotations

import numpy as np

from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.policies.distribution_portion import LOOKED_AT
from megatron_gopd.policies.update import Update

# columns of an update that scorers told, not the objective: what trajectories hold, and what is of some tokens only
NOT_MEANS = ("teacher_logprobs", "reference_logprobs", *LOOKED_AT)
WITH_MORE = {"advantage": "advantage_mean"}  # a column that is told by more than its mean


def step_metrics(
    step: int,
    batch: list[Trajectory],
    update: Update,
    seconds: dict[str, float],
    *,
    on_policy: bool = True,
    cap: float | None = None,
) -> dict[str, float]:
    """Means over the batch's response tokens, nats, of the weights before the update; seconds of each phase.

    A row has what its algorithm has: no reverse_kl without teachers' log-probs, no reward where nothing is graded; and
    whatever the objective tells of each token, under the objective's names. `on_policy`: the student sampled; `cap`: of
    the rollout correction.

    Raises UserError: an objective of the user's own gives a metric the name of another.
    """
    told = {
        WITH_MORE.get(name, name): _mean(column) for name, column in update.metrics.items() if name not in NOT_MEANS
    }
    metrics = _of_every_run(step, batch, update, seconds, on_policy)
    if cap is not None and "rollout_correction" in update.metrics:
        metrics["correction_clipped"] = float((_flat(update.metrics["rollout_correction"]) >= np.float32(cap)).mean())
    if taken := sorted(told.keys() & metrics.keys()):
        raise UserError(f"algorithm.type: its metric {taken[0]!r} is the name of another metric: give it another name")
    return metrics | told


def _of_every_run(
    step: int, batch: list[Trajectory], update: Update, seconds: dict[str, float], on_policy: bool
) -> dict[str, float]:
    tokens = sum(map(len, batch))
    metrics = {"loss": update.loss} | _distances(batch, update)
    metrics |= _by_teacher(batch, update)
    metrics |= _of_whole_laws(update) | {
        "entropy": _mean(update.entropy),
        "grad_norm": update.grad_norm,
        "lr": update.lr,
        "response_tokens_mean": tokens / len(batch),
        "truncated_fraction": sum(trajectory.finish_reason == "length" for trajectory in batch) / len(batch),
    }
    metrics |= (_off_policy(step, batch, update) if on_policy else {}) | _rewards(batch)
    if update.router_drift is not None:
        metrics["router_drift"] = update.router_drift
    metrics |= _replayed(batch)
    metrics |= {f"timing/{name}_s": value for name, value in seconds.items()}
    return metrics | {"tokens_per_s": tokens / seconds["step"]}


def _distances(batch: list[Trajectory], update: Update) -> dict[str, float]:
    """log pi_theta - log pi*, of all and by teacher."""
    if any(trajectory.teacher_logprobs is None for trajectory in batch):
        return {}
    gaps = [ours - trajectory.teacher_logprobs for ours, trajectory in zip(update.logprobs, batch, strict=True)]
    metrics = {"reverse_kl": _mean(gaps)}
    for name in _teachers(batch):
        of_teacher = [gap for gap, each in zip(gaps, batch, strict=True) if each.prompt.teacher == name]
        metrics[f"reverse_kl/{name}"] = _mean(of_teacher)
    return metrics


def _by_teacher(batch: list[Trajectory], update: Update) -> dict[str, float]:
    """Each teacher's share of the batch's response tokens, and the mean advantage of those."""
    metrics, tokens = {}, sum(map(len, batch))
    for name in _teachers(batch):
        numbers = [number for number, each in enumerate(batch) if each.prompt.teacher == name]
        metrics[f"teacher_tokens/{name}"] = sum(len(batch[number]) for number in numbers) / tokens
        if "advantage" in update.metrics:
            metrics[f"advantage_mean/{name}"] = _mean([update.metrics["advantage"][number] for number in numbers])
    return metrics


def _of_whole_laws(update: Update) -> dict[str, float]:
    """What some prefixes, looked at whole, tell of lambda: the 1 % quantile of its limit, and where it has none."""
    metrics = {}
    if "advantage" in update.metrics:
        metrics["advantage_variance"] = float(_flat(update.metrics["advantage"]).var(dtype=np.float64))
    if "lambda_limit" not in update.metrics:
        return metrics
    limits = _flat(update.metrics["lambda_limit"])
    limits = limits[~np.isnan(limits)]
    if not len(limits):  # a small batch, or one of teachers that ask no reference
        return metrics
    bounded = limits[np.isfinite(limits)]
    if len(bounded):
        metrics["lambda_limit/p01"] = float(np.quantile(bounded, 0.01))
    metrics["lambda_limit/unbounded"] = float(np.mean(np.isinf(limits)))
    metrics["teacher_reference_tv"] = float(np.nanmean(_flat(update.metrics["disagreement"])))
    return metrics


def _off_policy(step: int, batch: list[Trajectory], update: Update) -> dict[str, float]:
    """How far the policy that sampled is from the one that learned."""
    drift = np.abs(_flat(update.logprobs) - _flat(trajectory.behaviour_logprobs for trajectory in batch))
    return {
        "train_rollout_logprob_abs_diff": float(drift.mean()),
        "train_rollout_logprob_abs_diff_max": float(drift.max()),
    } | _ahead(step, batch)


def _ahead(step: int, batch: list[Trajectory]) -> dict[str, float]:
    """Of tokens: the updates since they were sampled. Of responses, where they come ahead of their step: the steps
    between theirs in the data's order and this one; those that were cut off by age."""
    metrics, early = {}, [trajectory.early for trajectory in batch]
    if all(trajectory.weight_versions is not None for trajectory in batch):  # an engine of one's own need not tell
        ages = step - 1 - _flat(trajectory.weight_versions for trajectory in batch)
        metrics |= {"staleness_mean": float(ages.mean()), "staleness_max": float(ages.max())}
    if None not in early:
        metrics["finished_order"] = float(np.abs(early).mean())
        metrics["ended_by_age"] = float(sum(trajectory.ended_by_age for trajectory in batch))
    return metrics


def _replayed(batch: list[Trajectory]) -> dict[str, float]:
    """Of the positions that are computed, the part whose experts the engine chose."""
    told = [each.routed_experts for each in batch if each.routed_experts is not None]
    positions = sum(len(each.prompt.student_tokens) + len(each) - 1 for each in batch)
    return {"replayed_fraction": sum(each.positions for each in told) / positions} if told else {}


def _rewards(batch: list[Trajectory]) -> dict[str, float]:
    """Means over responses, of all and by teacher; the prompts whose rewards are all equal, which teach nothing."""
    groups = {"reward": batch}
    for name in _teachers(batch):
        groups[f"reward/{name}"] = [trajectory for trajectory in batch if trajectory.prompt.teacher == name]
    metrics = {}
    for name, graded in groups.items():
        rewards = [trajectory.reward for trajectory in graded if trajectory.reward is not None]
        if rewards:
            metrics[name] = sum(rewards) / len(rewards)
    if all(trajectory.outcome is not None for trajectory in batch):
        telling = {trajectory.prompt.id for trajectory in batch if trajectory.outcome}
        metrics["zero_advantage_groups"] = float(len({trajectory.prompt.id for trajectory in batch} - telling))
    return metrics


def _teachers(batch: list[Trajectory]) -> list[str]:
    return sorted({trajectory.prompt.teacher for trajectory in batch} - {""})


def _flat(arrays) -> np.ndarray:
    return np.concatenate(list(arrays))


def _mean(arrays: list[np.ndarray]) -> float:
    return float(_flat(arrays).mean(dtype=np.float64))
