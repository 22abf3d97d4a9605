"""A folder that knows its own files: written last, a manifest proves that a folder is whole and undamaged."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.runs.atomic import write_text

NAME, DIGEST = "manifest.json", ".sha256"


class DamagedError(UserError):
    """A folder is not what its manifest says."""


def write_manifest(folder: str | Path, about: dict) -> None:
    """Write size and SHA-256 of every file in `folder`, `about` (JSON values), and a SHA-256 of both, to manifest.json.

    What write_digest has left beside a file is taken over, and removed.
    """
    folder = Path(folder)
    digests = _take_digests(folder)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in _files(folder)}
    digests |= _digests(folder, [name for name in sizes if name not in digests])
    files = {name: {"bytes": size, "sha256": digests[name]} for name, size in sizes.items()}
    manifest = json.loads(json.dumps({"about": about, "files": files}))
    write_text(folder / NAME, json.dumps(manifest | {"sha256": _digest_of(manifest)}, indent=1))


def write_digest(file: Path) -> None:
    """Leave the SHA-256 of a file beside it, for the manifest of a folder whose files several processes write."""
    file.with_name(file.name + DIGEST).write_text(_digest(file))


def read_manifest(folder: str | Path) -> dict:
    """What was said `about` the folder; the files are not looked at.

    Raises:
        DamagedError: no manifest, not one of ours, or one that was changed.
    """
    return _read(Path(folder))["about"]


def check_manifest(folder: str | Path) -> dict:
    """Compare every file with the manifest; returns what was said `about` the folder.

    Raises:
        DamagedError: names the first files that are missing, cut short or changed.
    """
    folder = Path(folder)
    manifest = _read(folder)
    files = manifest["files"]
    wrong = {name: _size_problem(folder / name, entry["bytes"]) for name, entry in files.items()}
    wrong = {name: problem for name, problem in wrong.items() if problem}
    digests = _digests(folder, [name for name in files if name not in wrong])
    wrong |= {name: "its checksum differs" for name, digest in digests.items() if digest != files[name]["sha256"]}
    if wrong:
        shown = "; ".join(f"{name}: {problem}" for name, problem in list(wrong.items())[:5])
        raise DamagedError(f"{folder} is damaged ({len(wrong)} of {len(files)} files): {shown}")
    return manifest["about"]


def _read(folder: Path) -> dict:
    try:
        manifest = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        raise DamagedError(f"{folder} has no {NAME}: it is not complete, or was not written by megatron-gopd") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{folder / NAME} cannot be read: {error}") from None
    if not _is_manifest(manifest):
        raise DamagedError(f"{folder / NAME} is not a manifest of megatron-gopd")
    own = manifest.pop("sha256", None)
    if own is not None and own != _digest_of(manifest):
        raise DamagedError(f"{folder / NAME} is damaged: its checksum of itself differs")
    return manifest


def _is_manifest(value: object) -> bool:
    about, files = (value.get("about"), value.get("files")) if isinstance(value, dict) else (None, None)
    if not isinstance(about, dict) or not isinstance(files, dict):
        return False
    return all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in files.values())


def _files(folder: Path) -> list[Path]:
    return sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names if name != NAME)


def _take_digests(folder: Path) -> dict[str, str]:
    digests = {}
    for path in folder.rglob(f"*{DIGEST}"):
        digests[str(path.relative_to(folder)).removesuffix(DIGEST)] = path.read_text()
        path.unlink()
    return digests


def _size_problem(path: Path, expected: int) -> str | None:
    try:
        size = path.stat().st_size
    except OSError as error:
        return error.strerror
    return None if size == expected else f"{size} bytes instead of {expected}"


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter's lock
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest_of(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
