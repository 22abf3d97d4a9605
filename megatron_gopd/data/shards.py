"""What a setting that names data means: a file, a folder of shards, or a glob -> the files, in order."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from megatron_gopd.config.hub import how_to_download
from megatron_gopd.errors import UserError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_GLOB = re.compile(r"[*?[]")
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![A-Za-z])")
SHOWN = 6  # folders or globs to choose from


def files_of(named: str | Path) -> list[Path]:
    """The .jsonl(.gz) and .parquet files that `named` means, sorted by name.

    A folder's own files are its shards; where it has none, those of the only folder below it that has some.

    Raises:
        UserError: nothing is there; or a folder holds several things, of which one is to be named.
    """
    path = Path(named)
    if path.is_dir():
        return _shards(path)
    if not path.exists() and _GLOB.search(str(named)):
        found = [Path(one) for one in sorted(glob.glob(str(named), recursive=True)) if Path(one).is_file()]
        if not found:
            raise UserError(f"{named}: no file matches; a relative path counts from the working folder")
        return found
    if not path.exists() and (download := how_to_download(named, "dataset")):
        raise UserError(f"{named}: no such file or folder of prompts{download}")
    return [path]  # which read_file opens, or refuses


def _shards(folder: Path) -> list[Path]:
    files = _files(folder) or _of_the_only_one(folder)
    kinds = {_pattern(file) for file in files}
    if len(kinds) > 1:
        choice = ", ".join(f"{files[0].parent}/{kind}" for kind in sorted(kinds)[:SHOWN])
        raise UserError(f"{folder} holds several formats or splits of data; name one of them: {choice}")
    return files


def _of_the_only_one(folder: Path) -> list[Path]:
    """The files of the one folder below that has any."""
    found = [file.relative_to(folder) for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}") if file.is_file()]
    below = sorted({folder / file.parent for file in found if not any(part[0] == "." for part in file.parts)})
    if len(below) > 1:
        more = ", ..." if len(below) > SHOWN else ""
        raise UserError(f"{folder}: the data are in several folders; name one: {_listed(below)}{more}")
    if not below:
        arrow = any(folder.rglob("*.arrow"))
        mend = "; datasets.load_from_disk(FOLDER).to_parquet(FILE) writes one of its .arrow files" if arrow else ""
        raise UserError(f"{folder}: no {' or '.join(SUFFIXES)} file in it{mend}")
    return _files(below[0])


def _files(folder: Path) -> list[Path]:
    return sorted(
        each for each in folder.iterdir() if each.name.endswith(SUFFIXES) and each.name[0] != "." and each.is_file()
    )


def _pattern(file: Path) -> str:
    """The glob of the files like this one: of its format and, where its name begins with one, its split."""
    split = _SPLIT.match(file.name)
    suffix = next(suffix for suffix in SUFFIXES if file.name.endswith(suffix))
    return f"{split[1] if split else ''}*{suffix}"


def _listed(folders: list[Path]) -> str:
    return ", ".join(map(str, folders[:SHOWN]))
