"""The checkpoints of a run as folders: step-N, each whole and proven by its manifest, or not there at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.runs.manifest import DamagedError, check_manifest
from megatron_gopd.terminal import say

PREFIX, DAMAGED = "step-", "damaged-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that its checksums prove whole."""

    path: Path
    about: dict

    @property
    def step(self) -> int:
        return self.about["step"]


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` belongs."""
    return root / f"{PREFIX}{step:08d}"


def newest_whole(root: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; damaged ones that are newer are reported and renamed to damaged-step-N.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found = _folders(root)
    damaged: list[str] = []
    for path in reversed(found):
        try:
            checkpoint = Checkpoint(path, check_manifest(path))
        except DamagedError as error:
            damaged.append(str(error))
            continue
        _set_aside(damaged, found[len(found) - len(damaged) :])
        return checkpoint
    if damaged:
        raise UserError(
            "\n".join(["no checkpoint of this run can be used:", *damaged])
            + "\nPut back the files from a copy, or start anew with checkpoint.resume=never"
        )
    return None


def newest_step(root: Path) -> int:
    """That of the newest checkpoint, whole or not; 0 without one."""
    return max((int(path.name.removeprefix(PREFIX)) for path in _folders(root)), default=0)


def prune(root: Path, keep: int) -> None:
    """Remove all but the `keep` newest; to be called right after one was written."""
    for path in _folders(root)[:-keep]:
        shutil.rmtree(path)


def remove_unfinished(root: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in root.glob(f".{PREFIX}*"):
        shutil.rmtree(path)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in _listed(root) if path.name.removeprefix(PREFIX).isdigit() and path.is_dir())


def _listed(root: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        yield from root.iterdir()


def _set_aside(problems: list[str], folders: list[Path]) -> None:
    for problem, path in zip(problems, reversed(folders), strict=True):
        aside = path.with_name(DAMAGED + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        say(f"warning: {problem}\n  it is {aside.name} now, and the one before it is used")
