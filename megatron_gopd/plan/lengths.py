"""Response lengths from a file: those of a run that was, in place of a log-normal law's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_gopd.errors import UserError


def read_lengths(path: Path, longest: int) -> np.ndarray:
    """[responses] tokens, ascending, cut at `longest`: of a text with a number a line, or of a run's trajectories.

    Raises:
        UserError: what is not there, or holds no lengths.
    """
    if not path.exists():
        raise UserError(f"--lengths {path}: not found; a text with a number a line, or runs/NAME/trajectories")
    found = _kept(path) if path.is_dir() or path.suffix == ".parquet" else _numbers(path)
    if not found:
        raise UserError(f"--lengths {path}: holds no lengths; a text with a number a line, or runs/NAME/trajectories")
    return np.sort(np.minimum(found, longest))


def _kept(path: Path) -> list[int]:
    """Of a run's trajectories those that were kept at random: others were kept because they are long, say."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    lengths = []
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        try:
            table = pq.read_table(file, columns=["kept_as", "response_tokens"])
        except (OSError, ValueError) as error:
            raise UserError(f"--lengths {file}: no trajectories of a run: {error}") from None
        at_random = table.filter(pc.equal(table["kept_as"], "random"))
        lengths += pc.list_value_length(at_random["response_tokens"]).to_pylist()
    return lengths


def _numbers(path: Path) -> list[int]:
    lengths = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        if not line.strip().isdigit() or int(line) < 1:
            raise UserError(f"--lengths {path}, line {number}: {line.strip()[:40]!r} is no number of tokens, 1 or more")
        lengths.append(int(line))
    return lengths
