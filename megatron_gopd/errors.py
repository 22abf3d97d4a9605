"""The one exception a user is meant to read."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator

# to the whole process group: the time limit is near, the job is preempted or cancelled, somebody presses Ctrl-C
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UserError(Exception):
    """A mistake the user can mend: the message says what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """

    kind, exit_code = "error", 2


class StoppedError(UserError):
    """Told to stop, and stopped where it can go on: no mistake. Exit code 75 is EX_TEMPFAIL of sysexits.h."""

    kind, exit_code = "interrupted", 75


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """A disk that is full or cannot be written is the user's to mend, wherever it shows: OSError -> UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{error.strerror}{where}; make room there, or name another folder, and start again") from None
