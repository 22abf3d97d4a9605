"""A batch of rows -> the micro-batches this rank's replica runs."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_gopd.data.packing import MicroBatch, Row, build_micro_batch, pack, share
from megatron_gopd.mcore.model import Model


def my_micro_batches(model: Model, batch: Sequence[Row], max_tokens: int) -> list[MicroBatch]:
    """Rows are shared over data-parallel ranks by their tokens, then packed to at most `max_tokens`."""
    lengths = [len(row) for row in batch]
    mine = share(lengths, model.groups.dp.size())[model.groups.dp.rank()]
    multiple = model.layout.tp if model.config.sequence_parallel else 1
    return [build_micro_batch(rows, batch, multiple) for rows in pack(mine, lengths, max_tokens)]


def reports(model: Model) -> bool:
    """Whether this rank speaks for its replica: of the ranks that hold the same result, exactly one does."""
    return model.is_last_stage and model.groups.tp.rank() == 0
