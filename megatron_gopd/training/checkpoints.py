"""What a run needs to go on after its end, saved every so many steps."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.checkpoint import BackgroundWriter, load_random_state, random_state, read
from megatron_gopd.mcore.megatron_folder import STATE, about
from megatron_gopd.mcore.save import copy_side_files
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.runs.again import command_again
from megatron_gopd.runs.atomic import publish
from megatron_gopd.runs.checkpoints import PREFIX, Checkpoint, folder_of, prune
from megatron_gopd.runs.manifest import write_manifest
from megatron_gopd.servers.supervisor import LostServersError
from megatron_gopd.terminal import say
from megatron_gopd.training.job import Job
from megatron_gopd.training.own_code import changes_since, digests_of


class Checkpoints:
    """Saves and restores a job. Every method is collective over all ranks."""

    def __init__(self, job: Job, root: Path):
        """`root` holds a folder for each checkpoint."""
        self.job, self.root, self.settings = job, root, job.config.checkpoint
        self._writer = BackgroundWriter()
        self._step = 0  # of the checkpoint being written

    def resume(self, checkpoint: Checkpoint | None) -> int:
        """Bring the job to where `checkpoint` was taken; returns the steps done.

        Raises:
            UserError: a checkpoint of another architecture, or of other data.
        """
        if checkpoint is None:
            return 0
        job, saved = self.job, checkpoint.about
        _refuse_another_model(checkpoint, Architecture.read(job.config.student.model))
        job.batches.go_on_from(saved["data"])
        same_ranks = saved["ranks"] == dist.get_world_size()
        if job.rollout:
            job.rollout.release()
        with job.student.state(loading=True) as state:
            loaded = read(state | (random_state() if same_ranks else {}), checkpoint.path / STATE)
            job.student.load_state(loaded, saved["step"])
        if same_ranks:
            load_random_state(loaded)
        if job.rollout:
            job.rollout.sync(job.student, saved["weight_version"])
        if is_first():
            say(f"continuing after step {saved['step']}, from {checkpoint.path}", flush=True)
            for change in changes_since(saved, job.config):
                say(f"warning: {change}", flush=True)
        return saved["step"]

    def after(self, step: int) -> None:
        """See to it that the last one is there; begin to write the next, where it is due.

        To be called before the metrics of `step` are recorded: a run that is killed then repeats at most `every` steps,
        and a checkpoint, which is published a step later at the soonest, never lacks its row.
        """
        self.finish()
        if self.settings.every and step % self.settings.every == 0:
            self._begin(step)

    def stopped(self, error: LostServersError) -> LostServersError:
        """What to raise in the place of `error`: a run without servers stops with a checkpoint of the steps done."""
        self.finish()
        done = self.job.student.steps_done
        if not self.settings.every or not done:
            return error
        if not folder_of(self.root, done).exists():
            self._begin(done)
            self.finish()
        return LostServersError(f"{error}\nA checkpoint of step {done} is there: the same command goes on from it")

    def stop_at(self, step: int) -> str:
        """Write the checkpoint of `step` now, if checkpoints are written at all; returns what there is, in words."""
        self.finish()
        if not self.settings.every:
            return "checkpoint.every is 0, so there is nothing to continue from"
        if not on_first(folder_of(self.root, step).exists):
            self._begin(step)
            self.finish()
        again = command_again(self.job.config)
        how = f". To go on:\n  {again}" if again else "; the same call goes on from there"
        return f"the checkpoint of step {step} is in {folder_of(self.root, step)}{how}"

    def finish(self) -> None:
        """Wait until what was begun is there."""
        with self._errors():
            self._writer.finish()

    def _begin(self, step: int) -> None:
        self._step = step
        folder = on_first(self._make_room)
        saved = self._about(step)
        if self.job.rollout:
            self.job.rollout.release()
        with self._errors(), self.job.student.state() as state:
            self._writer.start(state | random_state(), folder / STATE, then=lambda: self._publish(folder, saved))

    def _make_room(self) -> Path:
        folder = self.root / f".{PREFIX}{self._step:08d}-{secrets.token_hex(4)}"
        with self._errors():
            (folder / STATE).mkdir(parents=True)
        return folder

    def _publish(self, folder: Path, saved: dict) -> None:
        if not is_first():
            return
        copy_side_files(self.job.config.student.model, folder)
        write_manifest(folder, saved)
        publish(folder, folder_of(self.root, saved["step"]))
        shutil.rmtree(folder, ignore_errors=True)  # a checkpoint of the same step that stood there
        prune(self.root, self.settings.keep)

    def _about(self, step: int) -> dict:
        job = self.job
        return about(Architecture.read(job.config.student.model), step) | {
            "ranks": dist.get_world_size(),
            "data": job.batches.position_after(step),
            "weight_version": job.rollout.weight_version if job.rollout else 0,
            "config": job.config.model_dump(mode="json", by_alias=True),
            "own_code": digests_of(job.config),
        }

    @contextlib.contextmanager
    def _errors(self):
        """Failures to write, as something a person can act on; no checkpoint that was there before is touched."""
        try:
            yield
        except (OSError, CheckpointException) as error:
            if is_first():
                for left in self.root.glob(f".{PREFIX}*"):
                    shutil.rmtree(left, ignore_errors=True)
            raise UserError(
                f"the checkpoint of step {self._step} could not be written to {self.root}: {_cause(error)}. "
                f"{_free(self.root)} Earlier ones are untouched: when there is room again, the same command goes on"
            ) from None


def _refuse_another_model(checkpoint: Checkpoint, here: Architecture) -> None:
    saved, current = checkpoint.about["architecture"], asdict(here)
    wrong = [f"{key}: there {saved.get(key)}, here {current[key]}" for key in current if saved.get(key) != current[key]]
    if wrong:
        raise UserError(f"{checkpoint.path} is of another model than the student: {'; '.join(wrong)}")


def _cause(error: Exception) -> str:
    if isinstance(error, CheckpointException):
        ranks = ", ".join(map(str, sorted(error.failures)))  # none where only other ranks failed
        return f"the writers of rank(s) {ranks or 'other than this'} failed, as they say above"
    return str(error)


def _free(root: Path) -> str:
    try:
        return f"{shutil.disk_usage(root).free / 2**20:,.0f} MiB are free there."
    except OSError:
        return ""
