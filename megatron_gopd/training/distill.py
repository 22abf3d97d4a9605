"""Generalized On-Policy Distillation: the loop reads like the method."""

from __future__ import annotations

import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.errors import StoppedError
from megatron_gopd.mcore.save import save
from megatron_gopd.objective import gopd_loss
from megatron_gopd.runs import Spans, log_to
from megatron_gopd.servers.pool import LostServersError
from megatron_gopd.training.agreement import refuse_disagreement
from megatron_gopd.training.checkpoints import Checkpoints
from megatron_gopd.training.exams import Exams
from megatron_gopd.training.grading import Grader
from megatron_gopd.training.job import build_job
from megatron_gopd.training.recorder import Recorder
from megatron_gopd.training.stop import StopRequest


def distill(config: Config) -> None:
    """Run the whole distillation of `config`. Collective over the ranks of the job."""
    job = build_job(config)
    exams = Exams(config, job)
    recorder = Recorder(config, job.tokenizers.student)
    checkpoints = Checkpoints(job, recorder.checkpoints)
    correction = config.algorithm.rollout_correction
    token_loss = gopd_loss(config.algorithm.lambda_, correction.cap if correction else None)
    logs = log_to(recorder.logs, dist.get_rank())
    with recorder, logs, StopRequest() as stop, Grader(config) as grader, job.serving(recorder.logs):
        spans = Spans(on_enter=recorder.phase)
        exams.hold("before", 0, recorder)
        for step in range(checkpoints.resume(recorder.resumed) + 1, config.run.steps + 1):
            try:
                with spans("step"):
                    batch = []
                    for chunk in spans.over("rollout", job.batches.of(step)):
                        with spans("score"):
                            job.scorers.score(chunk)
                        batch += chunk
                    with spans("train"):
                        update = job.student.update(batch, token_loss)
                    refuse_disagreement(batch, update, config.rollout, job.tokenizers.student)
                    with spans("sync"):
                        job.rollout.sync(job.student)
                    grader.grade(batch, job.tokenizers.student)
            except LostServersError as error:
                if job.student.steps_done == step:  # lost after the update: the step counts
                    recorder.step(step, batch, update, spans.take(), {})
                raise checkpoints.stopped(error) from None
            with spans("checkpoint"):
                checkpoints.after(step)
            found = exams.after(step, recorder, spans)
            recorder.step(step, batch, update, spans.take(), found)
            if (why := stop.agreed()) and step < config.run.steps:
                raise StoppedError(f"{why} after step {step} of {config.run.steps}; {checkpoints.stop_at(step)}")
        checkpoints.finish()
        exams.hold("after", config.run.steps, recorder)
        save(job.student.export(), config.student.model, recorder.model, config.student.dtype)
        recorder.finish()
