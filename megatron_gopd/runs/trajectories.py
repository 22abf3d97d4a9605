"""The folder of the kept trajectories: a parquet file a step, bounded on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_gopd.terminal import say

if TYPE_CHECKING:
    import pyarrow

PREFIX, SUFFIX = "step-", ".parquet"
MEGABYTE = 10**6


def steps_kept(folder: Path) -> dict[int, Path]:
    """{step: its file}, in the order of steps; empty where there is no such folder."""
    numbers = {path: path.name.removeprefix(PREFIX).removesuffix(SUFFIX) for path in folder.glob(f"{PREFIX}*{SUFFIX}")}
    return dict(sorted((int(number), path) for path, number in numbers.items() if number.isdigit()))


def keep_up_to(folder: Path, step: int) -> None:
    """Remove the files of later steps, which will come again."""
    for at, path in steps_kept(folder).items():
        if at > step:
            path.unlink()


class TrajectoryFolder:
    """Takes one table a step. Together they hold at most `max_mb` * 10^6 bytes: the oldest steps go first."""

    def __init__(self, path: Path, max_mb: float) -> None:
        self._path, self._most = path, max_mb * MEGABYTE
        self._sizes = {step: file.stat().st_size for step, file in steps_kept(path).items()}
        self._told = False

    def write(self, step: int, table: pyarrow.Table) -> None:
        """Write step-N.parquet, whole or not at all. A step that is larger than the bound alone is not kept, and told.

        Values of float32 are cut into their bytes, of which the high ones are alike and take little room.
        """
        import pyarrow.parquet
        import pyarrow.types as types

        self._path.mkdir(exist_ok=True)
        file = self._path / f"{PREFIX}{step:08d}{SUFFIX}"
        temporary = file.with_name(f".{file.name}")
        floats = [field.name for field in table.schema if types.is_list(field.type) and _is_float(field.type)]
        others = [_leaf(field) for field in table.schema if field.name not in floats]
        pyarrow.parquet.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=6,
            write_statistics=False,
            store_schema=False,
            use_dictionary=others,
            column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in floats},
        )
        os.replace(temporary, file)  # not synced: after a power cut a reader may find it damaged, and says so
        self._sizes[step] = file.stat().st_size
        self._bound(step)

    def _bound(self, newest: int) -> None:
        total = sum(self._sizes.values())
        for step in list(self._sizes):
            if total <= self._most:
                return
            total -= self._sizes.pop(step)
            (self._path / f"{PREFIX}{step:08d}{SUFFIX}").unlink(missing_ok=True)
            if step == newest and not self._told:
                self._told = True
                say(
                    f"warning: the trajectories of step {step} alone are more than logging.trajectories.max_mb "
                    f"({self._most / MEGABYTE:g}), and are not kept; raise it, or lower per_teacher"
                )


def _is_float(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return types.is_floating(kind.value_type)


def _leaf(field: pyarrow.Field) -> str:
    import pyarrow.types as types

    return f"{field.name}.list.element" if types.is_list(field.type) else field.name
