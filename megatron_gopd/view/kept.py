"""Kept trajectories, packed for a page: columns of each response as bytes, texts once."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_gopd.runs.trajectories import steps_kept
from megatron_gopd.view.run import Run

if TYPE_CHECKING:
    import pyarrow

BUDGET = 24 * 10**6  # bytes of all responses on a page, before base64
LONGEST, LONGEST_PROMPT = 2000, 200_000  # characters of a token, and of a prompt, that are shown
SCALARS = "kept_as id sample teacher label reward outcome lambda finish_reason trained_from_version".split()


class Kept:
    """The responses of one run. `clipped`: of rollout corrections, how many are at the cap, and of how many tokens."""

    def __init__(self, run: Run, budget: int = BUDGET) -> None:
        self.rows: list[dict[str, Any]] = []
        self.columns: list[str] = []
        self.clipped: tuple[int, int] | None = None
        self._texts: dict[str, int] = {}
        self._cap = run.setting("algorithm.rollout_correction.cap")
        files = steps_kept(run.path / "trajectories")
        shown = _evenly(files, budget)
        if len(shown) < len(files):
            of = f"{len(shown)} of the {len(files)} steps that kept some"
            run.notes.append(f"the page has no room for all responses: it has those of {of}, evenly spaced")
        damaged = [step for step, file in shown.items() if not self._read(file)]
        if damaged:
            first = ", ".join(map(str, damaged[:5])) + (" and others" if len(damaged) > 5 else "")
            run.notes.append(f"the kept responses of step {first} cannot be read, and are left out")

    @property
    def texts(self) -> list[str]:
        """Of tokens and prompts, by the numbers that rows name."""
        return list(self._texts)

    def _read(self, file: Path) -> bool:
        import pyarrow
        import pyarrow.parquet

        try:
            rows = [self._packed(row) for row in _rows(pyarrow.parquet.read_table(file))]
        except (OSError, pyarrow.ArrowException, KeyError, TypeError, ValueError):  # damaged, or of another version
            return False
        self.rows += rows
        return True

    def _packed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The scalars, and one string of [tokens] int32 ids, int32 numbers of texts, then a float32 array a column."""
        ids = np.asarray(row["response_tokens"], np.int32)
        pieces = np.array([self._number(piece, LONGEST) for piece in row["pieces"]], np.int32)
        if len(ids) != len(pieces):
            raise ValueError("not a piece for each token")
        columns = {name: value for name, value in row.items() if _is_column(value, len(ids))}
        self.columns += [name for name in columns if name not in self.columns]
        self._count_clipped(columns.get("rollout_correction"))
        return {
            **{name: _finite(row.get(name)) for name in SCALARS},
            "sampled_with": _ends(row.get("sampled_with_versions")),
            "step": int(row["step"]),
            "prompt": self._number(row["prompt"], LONGEST_PROMPT),
            "tokens": len(ids),
            "columns": [self.columns.index(name) for name in columns],
            "data": base64.b64encode(b"".join(each.tobytes() for each in (ids, pieces, *columns.values()))).decode(),
        }

    def _number(self, text: str, longest: int) -> int:
        if len(text) > longest:
            text = f"{text[:longest]}… and {len(text) - longest:,} characters more"
        return self._texts.setdefault(text, len(self._texts))

    def _count_clipped(self, corrections: np.ndarray | None) -> None:
        if corrections is not None and isinstance(self._cap, int | float):
            count, tokens = self.clipped or (0, 0)
            self.clipped = count + int((corrections >= self._cap).sum()), tokens + len(corrections)


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _ends(versions: np.ndarray | None) -> list[int] | None:
    """The oldest and the newest; None: nobody told."""
    return None if versions is None or not len(versions) else [int(versions.min()), int(versions.max())]


def _is_column(value: object, tokens: int) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and len(value) == tokens


def _rows(table: pyarrow.Table) -> list[dict[str, Any]]:
    """Like to_pylist, with numbers of tokens as arrays."""
    import pyarrow.types as types

    columns: dict[str, list] = {}
    for field in table.schema:
        column = table.column(field.name)
        if types.is_list(field.type) and types.is_primitive(field.type.value_type):
            cells = (cell.values if cell.is_valid else None for cell in column)
            columns[field.name] = [None if cell is None else cell.to_numpy(zero_copy_only=False) for cell in cells]
        else:
            columns[field.name] = column.to_pylist()
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _evenly(files: dict[int, Path], budget: int) -> dict[int, Path]:
    """As many as the budget allows by the footers' counts of values, first and last among them."""
    import pyarrow
    import pyarrow.parquet

    sizes = []
    for file in files.values():
        try:
            meta = pyarrow.parquet.read_metadata(file)
            group = [meta.row_group(g) for g in range(meta.num_row_groups)]
            sizes.append(sum(4 * g.column(c).num_values for g in group for c in range(g.num_columns)))
        except (OSError, pyarrow.ArrowException):
            sizes.append(0)
    count = len(files)
    while count > 1 and sum(sizes[at] for at in _spread(len(files), count)) > budget:
        count = min(count - 1, int(count * 0.9))
    steps = list(files)
    return {steps[at]: files[steps[at]] for at in _spread(len(files), count)}


def _spread(length: int, count: int) -> list[int]:
    return sorted({round(at) for at in np.linspace(0, length - 1, count)}) if length else []
