"""Group Relative Policy Optimization: each response is as good as its reward, beside the others to the same prompt."""

from __future__ import annotations

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.kernels.linear_token_loss import TokenLossFunction
from megatron_gopd.objective import loss_of
from megatron_gopd.policies.update import Update
from megatron_gopd.training.agreement import refuse_disagreement
from megatron_gopd.training.grading import set_outcomes
from megatron_gopd.training.job import Job
from megatron_gopd.training.session import Session


def grpo(config: Config) -> None:
    """Run the whole training of `config`. Collective over the ranks of the job."""
    asked = config.algorithm
    loss = loss_of(asked)
    with Session.of(config) as session:
        job, spans = session.job, session.spans
        for step in session.steps():
            batch = []
            job.scorers.prepare()
            for chunk in spans.over("rollout", job.batches.of(step)):
                session.grade(chunk)
                with spans("score"):
                    job.scorers.score(chunk)  # by the reference, where its KL counts
                batch += chunk
            set_outcomes(batch, normalize_std=asked.normalize_std)
            with spans("train"):
                batch, update = _update(batch, job, loss, step)
                session.trained(batch, update)
            refuse_disagreement(batch, update, config.rollout, job.tokenizers.student)
            with spans("sync"):
                job.rollout.sync(job.student)


def _update(batch: list[Trajectory], job: Job, loss: TokenLossFunction, step: int) -> tuple[list[Trajectory], Update]:
    """One optimizer step, or one for each mini-batch against the log-probs before the first; and the batch in order."""
    parts = job.config.algorithm.updates
    if parts == 1:
        return batch, job.student.update(batch, loss)
    cut = mini_batches(batch, parts, [job.config.run.seed, step])
    batch = [trajectory for part in cut for trajectory in part]
    for trajectory, logprobs in zip(batch, job.student.logprobs(batch), strict=True):
        trajectory.old_logprobs = logprobs
    update = Update.of_all([job.student.update(part, loss) for part in cut])
    update.logprobs = [trajectory.old_logprobs for trajectory in batch]
    return batch, update


def mini_batches(batch: list[Trajectory], parts: int, seed: list[int]) -> list[list[Trajectory]]:
    """As many prompts in each, at random, whatever order their responses came in; groups stay together."""
    prompts = sorted({trajectory.prompt.id for trajectory in batch})
    place = dict(zip(prompts, np.random.default_rng(seed).permutation(len(prompts)) % parts, strict=True))
    batch = sorted(batch, key=lambda trajectory: (trajectory.prompt.id, trajectory.sample))
    return [[trajectory for trajectory in batch if place[trajectory.prompt.id] == part] for part in range(parts)]
