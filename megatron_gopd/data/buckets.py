"""Sizes in which a GPU decodes, each captured once, so there are few of them; and the memory that they may take."""

from __future__ import annotations

from typing import NamedTuple

LEAST_ROWS = 8  # below, a step takes as long: it reads all weights anyway
LEAST_TOKENS, UNIT, GROWTH = 256, 128, 1.25  # a step reads the bucket's whole cache, a fifth of it in vain at most
MOST, STAYS = 0.4, 1 / 16  # of a GPU's memory: for a cache; for one that stays between rollouts


class Bucket(NamedTuple):
    rows: int
    tokens: int  # of prompt and response

    @property
    def room(self) -> int:
        return self.rows * self.tokens


def bucket(rows: int, tokens: int, most_rows: int) -> Bucket:
    """The smallest that holds `rows` of `tokens`: rows are a power of two, or all that there may be."""
    wide = max(LEAST_ROWS, 1 << (rows - 1).bit_length())
    size = LEAST_TOKENS
    while size < tokens:
        size = -(-int(size * GROWTH) // UNIT) * UNIT
    return Bucket(min(most_rows, wide), size)


def rows_at_a_time(asked: int, tokens: int, token_bytes: int, memory: float) -> int:
    """Of `asked` rows that may hold `tokens` each, those whose cache fits in its share of a GPU's `memory` (bytes)."""
    of_row = bucket(1, tokens, 1).tokens * token_bytes
    return max(1, min(asked, int(MOST * memory / of_row)))


def stays(size: float, memory: float) -> bool:
    """Whether a cache of `size` bytes is kept between rollouts, and with it what was captured."""
    return size <= STAYS * memory
