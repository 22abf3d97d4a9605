"""The package's log, one file a rank and attempt."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.srun import this_node
from megatron_gopd.terminal import ShownFormatter

LOGGER = logging.getLogger("megatron_gopd")


@contextmanager
def log_to(folder: Path, rank: int) -> Iterator[Path]:
    """Write what the package logs within the block to folder/rank-R.log, and the traceback that ends it, if one does.

    Rank 0 shows warnings on stderr too. Yields the file.

    Raises:
        UserError: this node cannot write it.
    """
    file = folder / f"rank-{rank}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8")]
    except OSError as error:
        raise UserError(
            f"{this_node()} cannot write to {folder} ({error.strerror}); "
            f"set run.folder to a folder that all nodes share and can write"
        ) from None
    handlers[0].setFormatter(ShownFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if rank == 0:
        handlers.append(logging.lastResort)  # Python's own for warnings, which a file handler would silence
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # a library that configured the root logger would print all of it
    for handler in handlers:
        LOGGER.addHandler(handler)
    try:
        yield file
    except BaseException as error:
        record_exception(error)
        raise
    finally:
        LOGGER.propagate = True
        for handler in handlers:
            LOGGER.removeHandler(handler)
        handlers[0].close()


def record_exception(error: BaseException) -> None:
    """Log the traceback of `error`, which ends this rank."""
    # info: for the file alone, since what is shown of an error is the command line's to choose
    LOGGER.info("this rank ends: %r", error, exc_info=error)
