"""The one exception a user is meant to read."""


class UserError(Exception):
    """A mistake the user can mend: the message says what is wrong, where, and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """

    kind, exit_code = "error", 2


class StoppedError(UserError):
    """Told to stop, and stopped where it can go on: no mistake. Exit code 75 is EX_TEMPFAIL of sysexits.h."""

    kind, exit_code = "interrupted", 75
