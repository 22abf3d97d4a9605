"""Generalized On-Policy Distillation: the loop reads like the method."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.objective import loss_of
from megatron_gopd.training.agreement import refuse_disagreement
from megatron_gopd.training.grading import set_outcomes
from megatron_gopd.training.session import Session


def distill(config: Config) -> None:
    """Run the whole distillation of `config`. Collective over the ranks of the job."""
    asked = config.algorithm
    loss = loss_of(asked)
    with Session.of(config) as session:
        job, spans = session.job, session.spans
        for step in session.steps():
            batch = []
            job.scorers.prepare()
            for chunk in spans.over("rollout", job.batches.of(step)):
                with spans("score"):
                    job.scorers.score(chunk)
                session.grade(chunk)
                batch += chunk
            if asked.rewards_for:
                set_outcomes(batch, normalize_std=True)
            with spans("train"):
                session.trained(batch, update := job.student.update(batch, loss, job.scorers.payload))
            refuse_disagreement(batch, update, config.rollout, job.tokenizers.student)
            with spans("sync"):
                job.rollout.sync(job.student)
