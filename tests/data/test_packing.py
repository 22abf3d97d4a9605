"""Packing and sharing: nothing lost, little wasted, balanced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_gopd.data.packing import Row, build_micro_batch, in_order, pack, share

BUDGET = 16384


@pytest.fixture(scope="module")
def lengths() -> list[int]:
    """Log-normal, as responses are: median 1,800 tokens, some past 10,000."""
    return np.random.default_rng(0).lognormal(7.5, 0.8, 512).astype(int).clip(2, 18000).tolist()


def random_rows(count: int = 6, seed: int = 0) -> list[Row]:
    random = np.random.default_rng(seed)
    return [Row(*(random.integers(1, 99, random.integers(1, 9)).tolist() for _ in "xy")) for _ in range(count)]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_get_tokens_within_five_percent_of_each_other(lengths, ranks):
    loads = [sum(lengths[row] for row in rows) for rows in share(lengths, ranks)]
    assert max(loads) <= 1.05 * min(loads)


def test_every_row_goes_to_one_rank(lengths):
    assert sorted(row for rows in share(lengths, 4) for row in rows) == list(range(len(lengths)))


def test_a_micro_batch_keeps_to_the_budget_unless_one_row_is_longer(lengths):
    bins = pack(range(len(lengths)), lengths, BUDGET)
    assert all(sum(lengths[row] for row in rows) <= BUDGET or len(rows) == 1 for rows in bins)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))


def test_micro_batches_are_filled_to_95_percent(lengths):
    bins = pack(range(len(lengths)), lengths, BUDGET)
    assert sum(lengths) >= 0.95 * BUDGET * (len(bins) - 1)  # the last one takes what is left


@pytest.mark.parametrize(("cp", "multiple"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)])
def test_padding_wastes_at_most_five_percent(lengths, cp, multiple):
    rows = [Row([1] * (length // 2), [1] * (length - length // 2 + 1)) for length in lengths[:64]]
    micro_batch = build_micro_batch(range(64), rows, cp=cp, multiple=multiple)
    assert sum(map(len, rows)) >= 0.95 * cp * len(micro_batch.tokens)


@pytest.mark.parametrize(("cp", "multiple"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2)])
def test_every_response_token_is_predicted_once_from_the_token_before_it(cp, multiple):
    rows = random_rows()
    seen = []
    for rank in range(cp):
        part = build_micro_batch(range(len(rows)), rows, cp=cp, cp_rank=rank, multiple=multiple)
        assert len(part.tokens) * cp == part.cu_seqlens[-1]
        assert len(part.tokens) % multiple == 0
        for place, target, row, offset in zip(part.positions, part.targets, part.rows, part.offsets, strict=True):
            tokens = [*rows[row].prompt_tokens, *rows[row].response_tokens]
            predicting = len(rows[row].prompt_tokens) - 1 + offset
            assert part.tokens[place] == tokens[predicting]
            assert target == tokens[predicting + 1]
            seen.append((int(row), int(offset)))
    assert sorted(seen) == [(i, t) for i, row in enumerate(rows) for t in range(len(row.response_tokens))]


def test_a_context_parallel_rank_holds_a_chunk_and_its_mirror():
    row = Row(list(range(9)), [0])  # inputs 0 .. 8, padded to 12: chunks of 3
    first, second = (build_micro_batch([0], [row], cp=2, cp_rank=rank).tokens.tolist() for rank in (0, 1))
    assert (first, second) == ([0, 1, 2, 0, 0, 0], [3, 4, 5, 6, 7, 8])


def test_a_micro_batch_without_rows_is_padding_that_nothing_is_read_from():
    empty = build_micro_batch([], [], cp=2, multiple=2)
    assert len(empty.tokens) % 4 == 0
    assert not len(empty.targets)
    assert torch.equal(empty.cu_seqlens, torch.tensor([0, 2 * len(empty.tokens)], dtype=torch.int32))


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [([2, 3, 1, 4], [[0, 1], [2, 3]]), ([9, 1, 9], [[0], [1], [2]]), ([], [])],
    ids=["filled", "one is more", "none"],
)
def test_items_stay_in_order_within_what_is_taken_together(sizes, groups):
    assert list(in_order(sizes, 5)) == groups
