"""The folder FOLDER/NAME that holds everything a run does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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
from megatron_gopd.runs.claims import CONFIG, clear, forget, locked, overwrites, refuse_what_is_not_a_run

CHOICES = "--new-name runs this beside it, --overwrite in its place"


@dataclass
class RunFolder:
    """A run's folder, which one process writes to at a time: where each thing goes. close() lets the next in."""

    path: Path
    _lock: TextIO = field(repr=False)
    logs: Path | None = None  # this attempt's: path/logs/attempt-N, from begin() on
    resumed: Checkpoint | None = None  # what this attempt continues from
    _made: list[Path] = field(default_factory=list)  # folders that claim() made on the way to it, the deepest first

    @classmethod
    def open(cls, config: Config) -> RunFolder:
        """The folder that an attempt writes to; see claim() and begin()."""
        folder = cls.claim(config)
        try:
            folder.begin(config)
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse what claim() refuses of a folder that is there, but whether it is in use; writes nothing."""
        path = Path(config.run.folder, config.run.name)
        if path.is_dir():
            refuse_what_is_not_a_run(path)
        if path.is_dir() and not overwrites(config):
            _refuse_another_configuration(path, config)
            refuse_finished(path, config)

    @classmethod
    def claim(cls, config: Config) -> RunFolder:
        """Keep others out, before models are loaded; to be called by one rank. Leaves what is there as it is.

        Raises:
            FinishedError: there is nothing left to do.
            UserError: the folder cannot be written, is not a run, is another configuration's, or is in use.
        """
        path = Path(config.run.folder, config.run.name)
        with _writing(path):
            made = [parent for parent in path.parents if not parent.exists()]
            path.mkdir(parents=True, exist_ok=True)
            refuse_what_is_not_a_run(path)
            folder = cls(path, locked(path), _made=made)
        try:
            cls.check(config)
        except BaseException:
            folder.close()
            raise
        return folder

    def begin(self, config: Config) -> None:
        """Make it the next attempt's.

        That continues from the newest whole checkpoint: rows of later steps are taken off metrics and samples. Without
        one, or under checkpoint.resume: never, what the last attempt wrote moves to its logs/attempt-N; under
        overwrite, it goes.

        Raises UserError: the folder cannot be written, no checkpoint is whole.
        """
        with _writing(self.path):
            if overwrites(config):
                clear(self.path)
            self.resumed = begin(self.path, config)
            write_text(self.path / CONFIG, to_yaml(_settled(config)))
            self.logs = next_attempt(self.path)

    def close(self) -> None:
        """Let another process write to this run; the end of the process does so too. What was never begun goes."""
        if self.logs is None:
            forget(self.path, self._made)
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def done(self) -> int:
        """Steps that this attempt does not repeat."""
        return self.resumed.step if self.resumed else 0

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


def remove(config: Config) -> None:
    """What a run of this name has left, but for its batch jobs' logs. Raises UserError: see RunFolder.claim."""
    path = Path(config.run.folder, config.run.name)
    if path.exists():
        start_anew = config.checkpoint.model_copy(update={"resume": "overwrite"})
        with RunFolder.claim(config.model_copy(update={"checkpoint": start_anew})), _writing(path):
            clear(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the run to {path} ({error}); set run.folder to a folder that can be written"
        ) from None


def _settled(config: Config) -> Config:
    """As the run's own file has it: who starts it again from there goes on."""
    if config.checkpoint.resume != "overwrite":
        return config
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"resume": "auto"})})


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
            + f"\nSet another run.name, or delete {file.parent}: {CHOICES}"
        )
