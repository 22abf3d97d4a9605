"""What optimizer steps saw and did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.objective import TokenRows, token_weights


@dataclass
class Update:
    """Of one optimizer step, or of the few of one batch.

    Token columns are of the weights BEFORE the step, one array a trajectory.
    """

    grad_norm: float
    lr: float
    loss: float
    logprobs: list[np.ndarray]
    entropy: list[np.ndarray]
    metrics: dict[str, list[np.ndarray]] = field(default_factory=dict)  # what the objective tells of every token
    router_drift: float | None = None  # of a student with experts, after the step: |W - W_start| / |W_start|

    @classmethod
    def of_all(cls, parts: Sequence[Update]) -> Update:
        """Steps on one part of a batch after the other: columns end to end, means of loss and gradient norm."""
        return cls(
            grad_norm=sum(part.grad_norm for part in parts) / len(parts),
            lr=parts[-1].lr,
            loss=sum(part.loss for part in parts) / len(parts),
            logprobs=[row for part in parts for row in part.logprobs],
            entropy=[row for part in parts for row in part.entropy],
            metrics={name: [row for part in parts for row in part.metrics[name]] for name in parts[0].metrics},
            router_drift=parts[-1].router_drift,
        )


def known_of_every_token(batch: list[Trajectory], config: Config) -> TokenRows:
    """The token columns of the whole batch, flat [tokens], before the student is asked; None where a row lacks one."""

    def flat(name: str) -> Tensor | None:
        columns = [getattr(trajectory, name) for trajectory in batch]
        return None if any(column is None for column in columns) else torch.from_numpy(np.concatenate(columns))

    lengths = torch.tensor([len(trajectory) for trajectory in batch])
    own = any(teacher.lambda_ is not None for teacher in config.teachers.values())
    lambdas = [config.lambda_of(trajectory.prompt.teacher) for trajectory in batch] if own else []
    outcomes = [trajectory.outcome for trajectory in batch]
    return TokenRows(
        weights=token_weights(lengths, config.algorithm.loss_aggregation),
        behaviour_logprobs=flat("behaviour_logprobs"),
        teacher_logprobs=flat("teacher_logprobs"),
        reference_logprobs=flat("reference_logprobs"),
        old_logprobs=flat("old_logprobs"),
        outcome=None if None in outcomes else torch.tensor(outcomes).repeat_interleave(lengths),
        lambda_=torch.tensor(lambdas).repeat_interleave(lengths) if lambdas else None,
    )


def refuse_non_finite(logprobs: list[np.ndarray], batch: list[Trajectory]) -> None:
    """Raises UserError: names the first response token whose log-prob under the student is not finite."""
    for values, trajectory in zip(logprobs, batch, strict=True):
        if not np.isfinite(values).all():
            token = int(np.flatnonzero(~np.isfinite(values))[0])
            raise UserError(
                f"the student's log-prob of response token {token} of prompt {trajectory.prompt.id!r} "
                f"({trajectory.prompt.source}) is {values[token]}; the weights hold NaN, or have diverged: "
                f"lower optimizer.lr"
            )
