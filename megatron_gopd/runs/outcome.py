"""How a launch ended, told in a file: launchers flatten exit codes, and a killed process has none to give."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

from megatron_gopd.errors import UserError
from megatron_gopd.runs.atomic import write_text
from megatron_gopd.terminal import say

VARIABLE = "MEGATRON_GOPD_OUTCOME"
LAST_WORD_S = 10.0


def write_outcome(exit_code: int, kind: str, message: str = "") -> None:
    """Write {"exit_code", "kind", "message", "time"} to the file MEGATRON_GOPD_OUTCOME names; nothing if it names none.

    One rank does so, once. The exit code is that of the command.
    """
    path = os.environ.get(VARIABLE)
    if path:
        said = {"exit_code": exit_code, "kind": kind, "message": message, "time": round(time.time(), 3)}
        write_text(path, json.dumps(said) + "\n")


def tell_outcome(error: UserError) -> None:
    """Say it on stderr, whether or not somebody still reads that, and write it."""
    with contextlib.suppress(OSError):
        say(f"{error.kind}: {error}", file=sys.stderr, flush=True)
    write_outcome(error.exit_code, error.kind, str(error))


def leave_the_last_word() -> None:
    """Wait to be ended, for a while: launchers end all ranks at the first that ends, and another has yet to say why."""
    time.sleep(LAST_WORD_S)
