"""Whose a run's folder is: one process at a time has it, and it is a run's or nobody's."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
from pathlib import Path
from typing import TextIO

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError

CONFIG, LOCK = "config.yaml", ".lock"
JOBS = "slurm"  # scripts and logs of the batch jobs, which are there before the run is
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


def is_restart() -> bool:
    """Whether torchrun or SLURM has started this command before: it means the same run as it did then."""
    return any(int(os.environ.get(name, "0")) for name in RESTARTS)


def overwrites(config: Config) -> bool:
    """Whether what is in the run's folder is to go."""
    return config.checkpoint.resume == "overwrite" and not is_restart()


def refuse_what_is_not_a_run(path: Path) -> None:
    """Raises UserError: the folder holds other things."""
    names = {name for name in os.listdir(path) if name not in (LOCK, JOBS) and not name.startswith(f".{CONFIG}-")}
    if names and CONFIG not in names:
        raise UserError(
            f"{path} holds {min(names)!r} but no {CONFIG}: it is not a run's folder. "
            f"Set another run.name or run.folder, or empty it"
        )


def locked(path: Path) -> TextIO:
    """The open lock file, which names its holder; the lock ends when it is closed or the process dies.

    Raises UserError: another process holds it.
    """
    lock = (path / LOCK).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with lock:
            lock.seek(0)
            holder = lock.read() or "another process"
        raise UserError(
            f"{path} is being written by {holder}; wait for its end, or end it, or set another run.name (--new-name)"
        ) from None
    if not _is_at(lock, path / LOCK):  # its holder has just given it up, and removed it
        lock.close()
        return locked(path)
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {socket.gethostname()}")
    lock.flush()
    os.register_at_fork(after_in_child=lock.close)  # a forked worker that outlives the run must not hold its lock
    return lock


def forget(path: Path, made: list[Path]) -> None:
    """Remove a run's folder that nothing was written to, and what of `made` is empty then; the lock must be held."""
    with contextlib.suppress(OSError):
        if os.listdir(path) == [LOCK]:
            (path / LOCK).unlink()
            for folder in (path, *made):
                folder.rmdir()


def clear(path: Path) -> None:
    """Remove what a run has left, but for its batch jobs' logs; the lock must be held. Raises OSError."""
    for each in sorted(path.iterdir(), key=lambda each: each.name == CONFIG):  # what makes it a run's goes last
        if each.name in (LOCK, JOBS):
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return False
