"""Names of the Hugging Face hub that are given where a path is meant: what to type instead."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

# an id is OWNER/NAME; pathlib makes one slash of two
_URL = re.compile(r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/|hf:/+)(?P<id>.+)")
_ID = re.compile(r"(?:datasets/)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?P<within>/.*)?/?")
_FILE = re.compile(r".*\.(jsonl?|parquet|csv|tsv|arrow|txt|gz|zst|zip|safetensors|gguf|yaml)")

_HERE = ("models", "data")  # where the message says to put them, and where the examples have them


def how_to_download(path: str | Path, kind: Literal["model", "dataset"]) -> str:
    """What to add to a message that there is no `path`: "" where it cannot be a name on the hub."""
    if not (name := hub_name(path)):
        return ""
    folder = f"{'data' if kind == 'dataset' else 'models'}/{name.rpartition('/')[2]}"
    option = "--repo-type dataset " if kind == "dataset" else ""
    return (
        f"; if it names a {kind} of the Hugging Face hub, download it, and name that folder: "
        f"hf download {name} {option}--local-dir {folder}"
    )


def hub_name(path: str | Path) -> str | None:
    """The OWNER/NAME on the hub that `path` may be; None where it cannot.

    A plain OWNER/NAME is one, unless OWNER is a folder here, models or data, or NAME a file.
    """
    url = _URL.fullmatch(text := str(path))
    found = _ID.fullmatch(url["id"] if url else text)
    if found is None:
        return None
    owner = text.partition("/")[0]
    is_path = found["within"] or _FILE.fullmatch(text) or owner in _HERE or os.path.isdir(owner)
    return found["id"] if url or not is_path else None
