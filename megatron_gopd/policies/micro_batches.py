"""A batch of rows -> the micro-batches this rank's replica runs."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_gopd.data.packing import MicroBatch, Row, build_micro_batch, pack, share
from megatron_gopd.mcore.model import Model


def my_micro_batches(
    model: Model, batch: Sequence[Row], max_tokens: int, chosen: Sequence[int] | None = None
) -> list[MicroBatch]:
    """Rows, all or the `chosen`, are shared over data-parallel ranks by tokens, then packed to at most `max_tokens`."""
    return [micro_batch_of(model, rows, batch) for rows in my_rows(model, batch, max_tokens, chosen)]


def my_rows(
    model: Model, batch: Sequence[Row], max_tokens: int, chosen: Sequence[int] | None = None
) -> list[list[int]]:
    """The rows of each of my_micro_batches, by their numbers in the batch.

    Every replica gets as many micro-batches as the one with most, the missing ones empty: experts are spread over
    replicas, and all must come to each exchange of tokens.
    """
    chosen = range(len(batch)) if chosen is None else chosen
    lengths = [len(row) for row in batch]
    shares = share([lengths[row] for row in chosen], model.groups.dp.size())
    packed = [pack([chosen[place] for place in mine], lengths, max_tokens) for mine in shares]
    mine = packed[model.groups.dp.rank()]
    mine += [[]] * (max(map(len, packed)) - len(mine))
    return mine


def micro_batch_of(model: Model, rows: Sequence[int], batch: Sequence[Row]) -> MicroBatch:
    """One micro-batch in the shape the model's layout asks for."""
    cp = model.groups.cp
    return build_micro_batch(rows, batch, cp=cp.size(), cp_rank=cp.rank(), multiple=model.token_multiple)


def reports(model: Model) -> bool:
    """Whether this rank speaks for its part of the tokens: of the ranks with the same result, exactly one does."""
    return model.is_last_stage and model.groups.tp.rank() == 0
