"""What a run needs to go on after its end, saved every so many steps."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.checkpoint import BackgroundWriter, load_random_state, random_state, read
from megatron_gopd.mcore.hf_folder import copy_side_files
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.runs.atomic import publish
from megatron_gopd.runs.checkpoints import PREFIX, Checkpoint, folder_of, prune
from megatron_gopd.runs.manifest import write_manifest
from megatron_gopd.training.job import Job

PACKAGES = ("megatron-gopd", "megatron-core", "torch", "transformers", "numpy")
STATE = "state"  # the folder of Megatron's files within a checkpoint


class Checkpoints:
    """Saves and restores a job. Every method is collective over all ranks."""

    def __init__(self, job: Job, root: Path):
        """`root` holds one folder a checkpoint."""
        self.job, self.config, self.root = job, job.config, root
        self._writer = BackgroundWriter()
        self._publisher = ThreadPoolExecutor(1)  # checksums of hundreds of gigabytes must not hold up a step
        self._publishing: Future | None = None

    def resume(self, checkpoint: Checkpoint | None) -> int:
        """Bring the job to where `checkpoint` was taken; returns the steps done.

        Raises:
            UserError: a checkpoint of another architecture, or of other data.
        """
        if checkpoint is None:
            return 0
        self._refuse_another_model(checkpoint)
        about, job = checkpoint.about, self.job
        same_ranks = about["ranks"] == dist.get_world_size()
        state = job.student.state(loading=True) | (random_state() if same_ranks else {})
        loaded = read(state, checkpoint.path / STATE)
        job.student.load_state(loaded, about["step"])
        if same_ranks:
            load_random_state(loaded)
        job.loader.load_state_dict(about["data"])
        job.rollout.sync(job.student)
        job.rollout.weight_version = about["weight_version"]
        if is_first():
            print(f"continuing after step {about['step']}, from {checkpoint.path}")
        return about["step"]

    def after(self, step: int) -> None:
        """Finish what has been written meanwhile, and begin to write this step where one is due."""
        with self._errors_of(step):
            self._writer.poll()
            if self.config.checkpoint.every and step % self.config.checkpoint.every == 0:
                self._save(step)
