"""A name of its own for a run that is tried beside others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import count, takewhile
from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.runs.claims import is_restart


def with_new_name(config: Config, *, claim: bool) -> Config:
    """The configuration under the first of NAME, NAME-2, NAME-3, ... that no run has; `claim`: make its folder now.

    A command that torchrun or SLURM starts again gets the name that it had. Raises UserError: no folder can be made.
    """
    folder, name = Path(config.run.folder), config.run.name
    taken = list(_taken(folder, name)) if is_restart() else []
    chosen = taken[-1] if taken else new_name(folder, name)
    while claim and not taken and not _made(folder / chosen):
        chosen = new_name(folder, name)
    return config.model_copy(update={"run": config.run.model_copy(update={"name": chosen})})


def new_name(folder: Path, name: str, endings: Sequence[str] = ("",)) -> str:
    """The first of NAME, NAME-2, ... of which no NAME + ending is there."""
    return next(
        candidate
        for candidate in _candidates(name)
        if not any((folder / f"{candidate}{ending}").exists() for ending in endings)
    )


def _made(path: Path) -> bool:
    """Whether the folder is new, and this process's: of two that want the same one gets it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return True
        return False
    except OSError as error:
        raise UserError(
            f"cannot write the run to {path} ({error}); set run.folder to a folder that can be written"
        ) from None


def _candidates(name: str) -> Iterator[str]:
    yield name
    for number in count(2):
        yield f"{name}-{number}"


def _taken(folder: Path, name: str) -> Iterator[str]:
    """NAME, NAME-2, ... as far as they are there."""
    return takewhile(lambda candidate: (folder / candidate).exists(), _candidates(name))
