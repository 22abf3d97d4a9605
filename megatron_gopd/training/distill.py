"""Generalized On-Policy Distillation: the loop reads like the method."""

from __future__ import annotations

import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.errors import StoppedError
from megatron_gopd.evaluation.probe import Probe
from megatron_gopd.mcore.save import save
from megatron_gopd.objective import gopd_loss
from megatron_gopd.runs import Spans, log_to
from megatron_gopd.training.checkpoints import Checkpoints
from megatron_gopd.training.grading import Grader
from megatron_gopd.training.job import build_job
from megatron_gopd.training.recorder import Recorder
from megatron_gopd.training.stop import StopRequest


def distill(config: Config) -> None:
    """Run the whole distillation of `config`. Collective over the ranks of the job."""
    job = build_job(config)
    probe = Probe(config, job.tokenizers, job.student, job.scorers) if config.evaluation else None
    recorder = Recorder(config, job.tokenizers.student)
    checkpoints = Checkpoints(job, recorder.checkpoints)
    correction = config.algorithm.rollout_correction
    token_loss = gopd_loss(config.algorithm.lambda_, correction.cap if correction else None)
    logs = log_to(recorder.logs, dist.get_rank())
    with recorder, logs, StopRequest() as stop, Grader(config.rewards) as grader:
        spans = Spans(on_enter=recorder.phase)
        if probe:
            recorder.measured("before", probe.measure(job.rollout))
        for step in range(checkpoints.resume(recorder.resumed) + 1, config.run.steps + 1):
            with spans("step"):
                batch = []
                for chunk in spans.over("rollout", job.rollout.generate(job.loader.next_batch(), step)):
                    with spans("score"):
                        job.scorers.score(chunk)
                    batch += chunk
                with spans("train"):
                    update = job.student.update(batch, token_loss)
                with spans("sync"):
                    job.rollout.sync(job.student)
                grader.grade(batch, job.tokenizers.student)
            with spans("checkpoint"):
                checkpoints.after(step)
            recorder.step(step, batch, update, spans.take())
            if (why := stop.agreed()) and step < config.run.steps:
                raise StoppedError(f"{why} after step {step} of {config.run.steps}; {checkpoints.stop_at(step)}")
        checkpoints.finish()
        if probe:
            recorder.measured("after", probe.measure(job.rollout))
        save(job.student.export(), config.student.model, recorder.model, config.student.dtype)
        recorder.finish()
