"""What the teacher's word is worth: the distillation's own loop and budget, and no teacher is asked.

Source of the control: arXiv:2608.31046. A = -0.5 for the fifth of a batch's response tokens that are least likely to
the student, 0 for all others.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.objective import TokenLoss, TokenRows
from megatron_gopd.runs import write_text
from megatron_gopd.training.session import Session

ADVANTAGE, SHARE = -0.5, 0.2


def control(config: Config) -> None:
    """`megatron_gopd.training.distill` with another loss, and without scores."""
    with Session.of(config) as session:
        job, spans = session.job, session.spans
        for step in session.steps():
            batch = []
            for chunk in spans.over("rollout", job.batches.of(step)):
                session.grade(chunk)
                batch += chunk
            with spans("train"):
                session.trained(batch, job.student.update(batch, fixed_advantage(least_likely(batch))))
            with spans("sync"):
                job.rollout.sync(job.student)


def least_likely(batch: list[Trajectory]) -> float:
    """The log-prob below which SHARE of the batch's response tokens lie, nats."""
    return float(np.quantile(np.concatenate([each.behaviour_logprobs for each in batch]), SHARE))


def fixed_advantage(below: float):
    """Build `token_loss(logprobs, entropy, rows)`: ADVANTAGE for tokens less likely than `below` nats, else 0."""

    def token_loss(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
        advantage = ADVANTAGE * (rows.behaviour_logprobs < below).to(logprobs.dtype)
        descent = -rows.weights.to(logprobs.dtype) * advantage
        return TokenLoss(descent.sum(), descent, None, {"advantage": advantage})

    return token_loss


def describe(config: Config, model: Path) -> None:
    """Say in the model's folder what it is: a report shows it as a baseline beside the distillations."""
    about = {
        "name": f"no teacher: {ADVANTAGE} on the least likely fifth",
        "student": str(Path(config.student.model).resolve()),
        "teachers": [str(Path(each.model).resolve()) for each in config.teachers.values()],
        "steps": config.run.steps,
        "seed": config.run.seed,
    }
    write_text(model / "baseline.json", json.dumps(about, indent=1) + "\n")
