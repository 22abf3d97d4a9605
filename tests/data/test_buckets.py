"""Sizes in which a GPU decodes."""

from __future__ import annotations

import pytest

from megatron_gopd.data.buckets import MOST, bucket, rows_at_a_time, stays

GIB = 2**30


@pytest.mark.parametrize(
    ("rows", "tokens", "found"),
    [(1, 1, (8, 256)), (9, 256, (16, 256)), (33, 257, (64, 384)), (64, 16584, (64, 18944)), (50, 900, (64, 1152))],
)
def test_the_smallest_that_holds_them(rows, tokens, found):
    assert bucket(rows, tokens, 64) == found


def test_there_are_never_more_rows_than_may_be():
    assert bucket(20, 300, 28).rows == 28
    assert bucket(3, 300, 5).rows == 5


def test_a_bucket_is_a_quarter_longer_than_it_must_be_at_most():
    assert all(bucket(1, tokens, 8).tokens < 1.25 * tokens + 128 for tokens in range(256, 20_000, 37))


def test_rows_are_fewer_where_the_cache_would_not_fit():
    assert rows_at_a_time(64, 366, 114_688, 80 * GIB) == 64
    assert rows_at_a_time(64, 16_584, 114_688, 80 * GIB) == int(MOST * 80 * GIB / (18_944 * 114_688)) == 15


def test_one_row_is_always_decoded():
    assert rows_at_a_time(64, 16_584, 114_688, GIB) == 1


def test_a_cache_stays_up_to_a_sixteenth_of_the_memory():
    assert (stays(5 * GIB, 80 * GIB), stays(5.1 * GIB, 80 * GIB)) == (True, False)
