"""What is around the steps of every loop: folder, logs, servers, checkpoints, evaluations, metrics, signals."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import StoppedError
from megatron_gopd.evaluation.node_graders import NodeGraders
from megatron_gopd.mcore.copies import copies
from megatron_gopd.mcore.save import save
from megatron_gopd.policies.update import Update
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.runs import Log, RunFolder, Spans, StepLine
from megatron_gopd.runs.interruption import known_by
from megatron_gopd.runs.machine import about_machine
from megatron_gopd.servers.supervisor import LostServersError
from megatron_gopd.training.agreement import compare_at_start
from megatron_gopd.training.checkpoints import Checkpoints
from megatron_gopd.training.exams import Exams
from megatron_gopd.training.grace import Grace, NoTimeError
from megatron_gopd.training.grading import set_rewards
from megatron_gopd.training.job import Job, build_job
from megatron_gopd.training.memory import explained
from megatron_gopd.training.recorder import Recorder
from megatron_gopd.training.stop import StopRequest

LOGGER = logging.getLogger(__name__)


@dataclass
class Session:
    """One attempt at a run. Every method is collective over the ranks of the job."""

    job: Job
    recorder: Recorder
    checkpoints: Checkpoints
    exams: Exams
    graders: NodeGraders
    stop: StopRequest
    grace: Grace
    spans: Spans
    _trained: tuple[int, list[Trajectory], Update] | None = field(default=None, init=False)  # not recorded yet

    @classmethod
    @contextlib.contextmanager
    def of(cls, config: Config) -> Iterator[Self]:
        """Build the job; open its folder, its logs and its servers for the time of the block.

        Raises:
            UserError: whatever of the configuration, the data or the models the user can mend.
            LostServersError: no server answers any more; there is a checkpoint of the steps done.
        """
        with _console(config) as line, Log(dist.get_rank()) as log, _claimed(config) as folder:
            job = build_job(config)
            exams = Exams(config, job)
            recorder = Recorder(config, job.tokenizers.student, folder, line)
            log.to(recorder.logs)
            LOGGER.info("rank %d: %s", dist.get_rank(), json.dumps(about_machine()))
            checkpoints = Checkpoints(job, recorder.checkpoints)
            graders = NodeGraders(config.rewards, config.sandbox)
            with recorder, StopRequest() as stop, graders, job.serving(recorder.logs):
                spans, grace = Spans(on_enter=recorder.phase), Grace(config.checkpoint.grace_s, stop)
                session = cls(job, recorder, checkpoints, exams, graders, stop, grace, spans)
                try:
                    with known_by(grace.look):
                        yield session
                except NoTimeError as error:
                    session._record({})
                    session._stop_at(job.student.steps_done, str(error))
                except LostServersError as error:
                    session._record({})
                    raise checkpoints.stopped(error) from None
                except torch.OutOfMemoryError as error:
                    raise explained(error, job.taken, session.spans.latest) from error

    def steps(self) -> Iterator[int]:
        """The numbers of the steps to do, those of an earlier attempt left out; what is due in between is done there.

        The body of the loop over them hands what it did to `trained`. After the last step the student is saved.
        """
        compare_at_start(self.job)
        last = self.job.config.run.steps
        self.recorder.evaluated(0, self.exams.hold("before", 0, self.recorder))
        self.exams.examine_teachers()
        done = self.checkpoints.resume(self.recorder.resumed)
        self._end_if_told(done)
        self.spans.take()  # servers were updated before the first step, too
        for step in range(done + 1, last + 1):
            self.grace.begins()
            with self.spans("step"):
                yield step
            self.grace.ended()
            with self.spans("checkpoint"):
                self.checkpoints.after(step)
            self._record(self.exams.after(step, self.recorder, self.spans))
            self._end_if_told(step)
        self.checkpoints.finish()
        self.exams.hold("after", last, self.recorder)
        config = self.job.config
        self.recorder.phase("saving the model")
        save(self.job.student.export(), config.student.model, self.recorder.model, config.student.dtype)
        self.exams.compare()
        self.recorder.finish()

    def chunks(self, step: int) -> Iterator[list[Trajectory]]:
        """Of what a step trains on, as responses are finished; scored by the body of the loop over them.

        Where servers sample, all of the rollout that the loop sees is a wait for them; and whatever the last chunk
        takes to be scored, a wait for scores.
        """
        spans, before = self.spans, 0.0
        self.job.scorers.prepare()
        for chunk in spans.over("rollout", self.job.batches.of(step)):
            before = spans.of("score")
            yield chunk
        spans.add("wait_for_score", spans.of("score") - before)
        if self.job.config.rollout.engine == "sglang":
            spans.add("wait_for_rollout", spans.of("rollout"))

    def scored(self) -> None:
        """Wait for what servers score of the chunks of a step."""
        with self.spans("wait_for_score"), self.spans("score"):
            self.job.scorers.wait()

    def grade(self, chunk: list[Trajectory]) -> None:
        """Fill in the rewards of trajectories, where the run has any."""
        if self.job.config.rewards != "none":
            with self.spans("grade"):
                set_rewards(chunk, self.graders.grade(chunk, self.job.tokenizers.student))

    def trained(self, batch: list[Trajectory], update: Update) -> None:
        """What the step under way has learned from: its metrics are recorded when it is over, or broken off."""
        self._trained = self.job.student.steps_done, batch, update

    def _end_if_told(self, done: int) -> None:
        """Raises StoppedError after `done` steps, where a signal asks for it and there are more to do."""
        if done < self.job.config.run.steps and (why := self.stop.agreed()):
            self._stop_at(done, why)

    def _stop_at(self, done: int, why: str) -> None:
        found = self.checkpoints.stop_at(done) if done else "there is nothing to save yet"
        raise StoppedError(f"{why} after step {done} of {self.job.config.run.steps}; {found}")

    def _record(self, found: dict[str, float]) -> None:
        """The row of the last step that was trained and not recorded, if there is one.

        An exception in the body of the loop has closed the generator of steps by now, and with it the step's span.
        """
        if self._trained:
            step, batch, update = self._trained
            waited = copies().take_waited_s()
            seconds = self.spans.take() | ({} if waited is None else {"offload_wait": waited})
            self.recorder.step(step, batch, update, seconds, found)
        self._trained = None


def _console(config: Config) -> contextlib.AbstractContextManager[StepLine | None]:
    """Of rank 0."""
    return StepLine(config.run.steps) if is_first() else contextlib.nullcontext()


@contextlib.contextmanager
def _claimed(config: Config) -> Iterator[RunFolder | None]:
    """The run's folder, on rank 0, for the time of the block. Collective; all ranks raise what claim() does there."""
    folder = None

    def claim() -> None:
        nonlocal folder
        folder = RunFolder.claim(config)

    on_first(claim)
    try:
        yield folder
    finally:
        if folder:
            folder.close()
