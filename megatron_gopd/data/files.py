"""jsonl and parquet files -> (place, number, columns) of each row; what the columns mean is for rows.py."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from megatron_gopd.errors import UserError

NESTED_COLUMNS = ("extra_info", "metadata", "reward_model")  # mappings
BATCH_ROWS = 128  # of a parquet file in memory; a row with the tests of a program takes megabytes


def read_file(path: Path, only: tuple[str, ...] = ()) -> Iterator[tuple[str, int, dict]]:
    """Yield (FILE:LINE, number from 1, columns) of each row of a .jsonl(.gz) or .parquet file, a few in memory.

    With `only`, those columns; the others of a parquet file are not even read.
    Raises UserError naming the file, or the row, that cannot be read or lacks one of `only`.
    """
    readers = {".jsonl": _read_jsonl, ".gz": _read_jsonl, ".parquet": _read_parquet}
    if not path.is_file():
        raise UserError(f"{path}: no such file of prompts; a relative path counts from the working folder")
    if path.suffix not in readers or (path.suffix == ".gz" and not path.name.endswith(".jsonl.gz")):
        raise UserError(f"{path}: prompts are read from .jsonl and .parquet files; convert it to one of them")
    return readers[path.suffix](path, only)


def _read_jsonl(path: Path, only: tuple[str, ...]) -> Iterator[tuple[str, int, dict]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as lines:  # bytes: a line that is not UTF-8 is named like any other bad line
        for number, line in enumerate(lines, 1):
            source = f"{path}:{number}"
            if not line.strip():
                raise UserError(f"{source}: an empty line; delete it")
            try:
                columns = json.loads(line.decode("utf-8"), parse_constant=_constant)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source}: not JSON: {error}") from None
            if not isinstance(columns, dict):
                raise UserError(f"{source}: a JSON object with a 'prompt' is expected, not {type(columns).__name__}")
            _check_columns(only, columns, source)
            yield source, number, {name: _unpacked(name, columns[name], source) for name in only or columns}


def _constant(written: str) -> float | None:
    """NaN is how a table leaves a cell out."""
    return None if written == "NaN" else float(written)


def _check_columns(wanted: tuple[str, ...], found: Iterable[str], source: str | Path) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{source}: no column {', '.join(map(repr, missing))}; columns: {', '.join(found)}")


def _read_parquet(path: Path, only: tuple[str, ...]) -> Iterator[tuple[str, int, dict]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(path)
        _check_columns(only, file.schema_arrow.names, path)
        single = {field.name for field in file.schema_arrow if field.type in (pyarrow.float16(), pyarrow.float32())}
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(only) or None):
            for columns in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                source = f"{path}:row {number}"
                columns |= {name: _shortest(columns[name]) for name in single & columns.keys()}
                yield source, number, {name: _unpacked(name, value, source) for name, value in columns.items()}
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None


def _shortest(value: float | None) -> float | None:
    """0.1 of a column of single precision, which Python would write 0.10000000149011612."""
    return None if value is None else float(str(np.float32(value)))


def _unpacked(name: str, value: object, source: str) -> object:
    """Mappings and messages that a file holds as JSON text; NaN, which is nothing; any other value as it is."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if not isinstance(value, str):
        return value
    if name in NESTED_COLUMNS and value.lstrip().startswith("{"):
        try:
            return json.loads(value, parse_constant=_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: {name!r} is not JSON: {error}") from None
    return _messages_in(value) or value


def _messages_in(text: str) -> list[dict] | None:
    """The list of messages that is written as JSON in `text`; None where it is plain text."""
    if not text.lstrip().startswith("["):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return items if all(isinstance(item, dict) and {"role", "content"} <= item.keys() for item in items) else None
