"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def write_text(path: str | Path, text: str) -> None:
    """Replace the file `path` by `text` (UTF-8): a reader sees the old text or the new, also after a power cut.

    Raises OSError, and then leaves what was there.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Write the file this yields; at the end of the block it becomes `path`, and replaces it.

    A block that raises leaves `path` as it was and nothing beside it.
    """
    path = Path(path)
    with _sibling(path) as temporary:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    _sync(path.parent)


def write_link(path: str | Path, target: str | Path) -> None:
    """Let the symbolic link `path` point at `target`, which a relative link counts from its own folder."""
    with _sibling(Path(path)) as temporary:
        temporary.symlink_to(target)
        os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Fill the folder this yields; at the end of the block it becomes `path`, in the place of whatever stood there.

    A block that raises leaves `path` as it was and nothing beside it; a killed process may leave `.NAME-xxxxxxxx`.
    On a file system that cannot exchange two names (NFS), `path` is missing for the moment between two renames.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(path) as temporary:
        temporary.mkdir()
        yield temporary
        publish(temporary, path)


def publish(folder: Path, path: Path) -> None:
    """Let the filled `folder`, on the same file system, become `path`, in the place of whatever stood there.

    What stood there bears the name `folder` afterwards.
    """
    for inner, _, files in os.walk(folder):
        for name in (*files, "."):
            _sync(Path(inner, name))
    if os.path.lexists(path):
        _exchange(folder, path)
    else:
        folder.rename(path)
    _sync(path.parent)


@contextmanager
def _sibling(path: Path) -> Iterator[Path]:
    """A free name beside `path`, hence on its file system; what bears it at the end is removed."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        yield temporary
    finally:
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _exchange(new: Path, path: Path) -> None:
    """Swap two names, in one step where kernel and file system can."""
    swap = getattr(ctypes.CDLL(None), "renameat2", lambda *_: -1)
    if swap(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
        return
    with _sibling(path) as aside:
        path.rename(aside)
        try:
            new.rename(path)
        except OSError:
            aside.rename(path)
            raise


@contextmanager
def sync_behind() -> Iterator[Callable[[Path], object]]:
    """Yields a function to be called with each finished file: it goes to the disk while the next is being made.

    Raises OSError at the end: a file that could not be written, after all (no space left).
    """
    with ThreadPoolExecutor(1) as pool:
        handed_over: list[Future] = []
        yield lambda path: handed_over.append(pool.submit(_sync, path))
        for one in handed_over:
            one.result()


def _sync(path: Path) -> None:
    """Have the kernel write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
