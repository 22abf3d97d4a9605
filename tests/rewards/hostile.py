"""The hostile programs of hostile.txt."""

from __future__ import annotations

import re
from pathlib import Path


def programs(**names: str) -> dict[str, str]:
    """family/name -> program, with each of `names` (CANARY, PORT) put in its place."""
    text = Path(__file__).with_name("hostile.txt").read_text()
    _, *parts = re.split(r"^### (.+)\n", text, flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    found["cheats/null_byte"] = found["cheats/null_byte"].replace(r"\x00", "\0")
    for name, value in names.items():
        found = {key: program.replace(name, value) for key, program in found.items()}
    return found
