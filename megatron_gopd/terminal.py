"""What is printed: text that others wrote is shown, and does nothing to the terminal that shows it.

Prompts, answers, names and what programs and servers say may hold sequences that a terminal obeys: that clear it, write
elsewhere on it, name its window, or turn text around. Everything this package prints goes through here.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from typing import TextIO

# controls but for tab and the end of a line; marks of direction and separators that are obeyed unseen; halves of
# characters, which no stream can encode
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: object) -> str:
    """`text` with everything a terminal would obey written as Python writes it: \\x1b[31m."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def say(*texts: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """As print()."""
    print(*map(shown, texts), sep=sep, end=end, file=file, flush=flush)


class ShownFormatter(logging.Formatter):
    """For logs, which are read in a terminal too."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


logging.lastResort.setFormatter(ShownFormatter())  # of warnings, where no log is kept


def show_errors() -> None:
    """Tracebacks too: exceptions hold text of others."""
    sys.excepthook = lambda *error: say("".join(traceback.format_exception(*error)), end="", file=sys.stderr)
