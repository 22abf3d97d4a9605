"""The program in a response: what stands in its last closed fence of Markdown, as models write them."""

from __future__ import annotations

import re
import textwrap

PYTHON = ("python", "python3", "py", "py3")
# words, or the end of a thought, may stand before a fence on its line; {python} and attributes after the language
_FENCE = re.compile(r"(?P<before>.*?)(?P<ticks>`{3,}|~{3,})\s*(?P<info>[^`]*)")
_LANGUAGE = re.compile(r"\{?\s*\.?([\w+#-]*)")


def last_code_block(text: str) -> str | None:
    """What stands in the last closed fence that is for Python, else in the last for no language; None without one."""
    found, plain, language, ticks, lines = None, None, None, "", []
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        opens = _opened(line, ticks if language is not None else "")
        closed = None if opens or language is None else _closed(line, ticks)
        if opens:
            (language, ticks), lines = opens, []
        elif closed is None:
            lines.append(line)
        else:
            block = _at_the_margin("\n".join([*lines, closed] if closed.strip() else lines))
            if language in PYTHON:
                found = block
            elif not language:  # often what the program prints
                plain = block
            language = None
    return plain if found is None else found


def _opened(line: str, within: str) -> tuple[str, str] | None:
    """(language, ticks) of a fence that begins on this line, be it `within` the ticks of one that was never closed."""
    fence = _FENCE.fullmatch(line)
    if fence is None or not fence["ticks"].startswith(within):
        return None
    language = _LANGUAGE.match(fence["info"].strip())[1].lower()
    before = fence["before"].strip()
    # in a block, what has words before it is a comment, or a string, unless a thought ends there
    python = language in PYTHON and (not before or not within or before.endswith(">"))
    return (language, fence["ticks"]) if python or (not before and (language or not within)) else None


def _closed(line: str, ticks: str) -> str | None:
    """The code that stands before the closing fence on its line; None where the block goes on."""
    bare = line.rstrip()
    before = bare.rstrip(ticks[0])
    return before if len(bare) - len(before) >= len(ticks) else None


def _at_the_margin(block: str) -> str:
    """Without the indentation of a list that it stands in; dedent would empty blank lines of strings, too."""
    return textwrap.dedent(block) if block.lstrip("\n")[:1].isspace() else block
