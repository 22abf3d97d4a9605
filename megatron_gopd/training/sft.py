"""Supervised fine-tuning: imitate what teachers answer, or what the data holds."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.objective import loss_of
from megatron_gopd.training.session import Session


def sft(config: Config) -> None:
    """Run the whole training of `config`. Collective over the ranks of the job."""
    loss = loss_of(config.algorithm)
    with Session.of(config) as session:
        job, spans = session.job, session.spans
        for step in session.steps():
            batch = []
            for chunk in spans.over("rollout", job.batches.of(step)):
                batch += chunk
            with spans("train"):
                session.trained(batch, job.student.update(batch, loss))
