"""The log of a rank, one file an attempt: what the package logs, and all that it prints."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Self, TextIO

from megatron_gopd.errors import UserError
from megatron_gopd.srun import this_node
from megatron_gopd.terminal import ShownFormatter, say

LOGGER = logging.getLogger("megatron_gopd")
CONSOLE = logging.getLogger("megatron_gopd.console")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # of terminals: colours, the cursor
HELD = 10_000  # lines that are printed before there is a file
ENDS = "this rank ends: "


class Log:
    """Takes what the package logs and what this rank prints within the block, and the traceback that ends it, if one
    does. `to` says where: what came before is written then.

    Rank 0 shows warnings on stderr too.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __enter__(self) -> Self:
        self._held = MemoryHandler(HELD, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._handlers: list[logging.Handler] = [self._held]
        if self._rank == 0:
            self._handlers.append(_Shown(sys.stderr))
        self._before = LOGGER.propagate, sys.stdout, sys.stderr
        for each in (LOGGER, CONSOLE):
            each.setLevel(logging.INFO)
        LOGGER.propagate = False  # a library that configured the root logger would print all of it
        for handler in self._handlers:
            LOGGER.addHandler(handler)
        sys.stdout, sys.stderr = _Copied(sys.stdout), _Copied(sys.stderr)
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if error is not None:
            record_exception(error)
        LOGGER.propagate, sys.stdout, sys.stderr = self._before
        for handler in self._handlers:
            LOGGER.removeHandler(handler)
            handler.close()

    def to(self, folder: Path) -> Path:
        """Write folder/rank-R.log from now on. Raises UserError: this node cannot."""
        file = folder / f"rank-{self._rank}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handler = _File(file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UserError(
                f"{this_node()} cannot write to {folder} ({error.strerror}); "
                f"set run.folder to a folder that all nodes share and can write"
            ) from None
        handler.setFormatter(ShownFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._held.setTarget(handler)
        self._held.flush()
        self._handlers.append(handler)
        LOGGER.addHandler(handler)
        LOGGER.removeHandler(self._held)
        return file


def record_exception(error: BaseException) -> None:
    """Log the traceback of `error`, which ends this rank."""
    # info: for the file alone, since what is shown of an error is the command line's to choose
    LOGGER.info("%s%s: %s", ENDS, type(error).__name__, error, exc_info=error)


def last_words(logs: Path) -> str | None:
    """KIND: MESSAGE of what ended an attempt, by its folder of logs; None where no rank has said."""
    for file in sorted(logs.glob("rank-*.log")):
        _, found, said = file.read_text(encoding="utf-8", errors="replace").rpartition(ENDS)
        if found:
            return said.partition("\nTraceback (most recent call last):")[0].rstrip()
    return None


class _File(logging.FileHandler):
    """A disk that is full shows where something else is written: a log that lacks lines ends no run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's own name)
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _Shown(logging.Handler):
    """Warnings of the package, on the stream that was stderr before it was copied: they are in the log already."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.WARNING)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            say(self.format(record), file=self._stream, flush=True)


class _Copied:
    """A stream whose whole lines are logged too. Nobody needs to read it: a closed pipe must not end a run."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line, self._lock = stream, "", threading.RLock()

    def write(self, text: str) -> int:
        with self._unread():
            self._stream.write(text)
        with self._lock:
            *whole, self._line = (self._line + text).split("\n")
            for line in whole:
                CONSOLE.info("%s", ESCAPES.sub("", line).rpartition("\r")[2])
        return len(text)

    def flush(self) -> None:
        with self._unread():
            self._stream.flush()

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    @property
    def rich_proxied_file(self) -> _Copied:
        """Where rich writes: not what is below, past the log and onto the bar."""
        return self

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _unread(self):
        try:
            yield
        except BrokenPipeError:  # `| tee` hears Ctrl-C, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
