"""The folder FOLDER/NAME that holds everything a run does."""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import yaml

from megatron_gopd.config import Config, to_yaml
from megatron_gopd.config.same_run import differences
from megatron_gopd.config.yaml_text import read_yaml
from megatron_gopd.errors import UserError
from megatron_gopd.runs.atomic import write_text
from megatron_gopd.runs.attempts import RESULTS, begin, next_attempt, refuse_finished
from megatron_gopd.runs.checkpoints import Checkpoint

CONFIG, LOCK = "config.yaml", ".lock"
JOBS = "slurm"  # scripts and logs of the batch jobs, which are there before the run is


@dataclass(frozen=True)
class RunFolder:
    """An attempt at a run: where each thing goes. One process writes to a run at a time; close() lets the next in."""

    path: Path
    logs: Path  # this attempt's: path/logs/attempt-N
    resumed: Checkpoint | None  # what this attempt continues from
    _lock: TextIO = field(repr=False)

    @classmethod
    def open(cls, config: Config) -> RunFolder:
        """Make the run's folder, or begin the next attempt in it; to be called by one rank.

        The next attempt continues from the newest whole checkpoint: rows of later steps are taken off metrics,
        samples and trajectories. Without one, or under checkpoint.resume: never, what the last attempt wrote moves to
        its logs/attempt-N.

        Raises:
            FinishedError: there is nothing left to do.
            UserError: the folder cannot be written, is not a run, is another configuration's, or is in use.
        """
        path = Path(config.run.folder, config.run.name)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_what_is_not_a_run(path)
            lock = _locked(path)
            try:
                _refuse_another_configuration(path, config)
                resumed = begin(path, config)
                write_text(path / CONFIG, to_yaml(config))
                return cls(path, next_attempt(path), resumed, lock)
            except BaseException:
                lock.close()
                raise
        except OSError as error:
            raise UserError(
                f"cannot write the run to {path} ({error}); set run.folder to a folder that can be written"
            ) from None

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise now what open() would raise of a folder that is there, before models are loaded; writes nothing."""
        path = Path(config.run.folder, config.run.name)
        if path.is_dir():
            _refuse_what_is_not_a_run(path)
            _refuse_another_configuration(path, config)
            refuse_finished(path, config)

    def close(self) -> None:
        """Let another process write to this run; the end of the process does so too."""
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def metrics(self) -> Path:
        """jsonl, one row a step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """jsonl, some of what the student said."""
        return self.path / "samples.jsonl"

    @property
    def trajectories(self) -> Path:
        """parquet, a file a step: some responses token by token."""
        return self.path / "trajectories"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The student after the last step: a Hugging Face directory."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"


def _refuse_what_is_not_a_run(path: Path) -> None:
    names = {name for name in os.listdir(path) if name not in (LOCK, JOBS) and not name.startswith(f".{CONFIG}-")}
    if names and CONFIG not in names:
        raise UserError(
            f"{path} holds {min(names)!r} but no {CONFIG}: it is not a run's folder. "
            f"Set another run.name or run.folder, or empty it"
        )


def _locked(path: Path) -> TextIO:
    """The open lock file, which names its holder; the lock ends when it is closed or the process dies."""
    lock = (path / LOCK).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            lock.seek(0)
            holder = lock.read() or "another process"
        raise UserError(
            f"{path} is being written by {holder}; wait for its end, or end it, or set another run.name"
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    os.register_at_fork(after_in_child=lock.close)  # a forked worker that outlives the run must not hold its lock
    return lock


def _refuse_another_configuration(path: Path, config: Config) -> None:
    file = path / CONFIG
    if not file.exists() or not any((path / name).exists() for name in RESULTS):
        return
    try:
        there, _ = read_yaml(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{file} is not YAML any more; set another run.name, or delete {file.parent}") from None
    found = list(differences(there, read_yaml(to_yaml(config))[0]))
    if found:
        more = [f"and {len(found) - 5} more"] if len(found) > 5 else []
        raise UserError(
            "\n  ".join([f"{file} is of another configuration:", *found[:5], *more])
            + f"\nSet another run.name, or delete {file.parent}"
        )
