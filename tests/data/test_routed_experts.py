"""Experts of rows on their way to micro-batches."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_gopd.data.packing import Row, build_micro_batch
from megatron_gopd.data.routed_experts import OWN, dtype_of

LAYERS, TOP_K = 3, 2


def row(prompt: int, response: int, told: int | None) -> Row:
    """Whose tokens count from 1, and whose experts are the token, but of positions from `told` on."""
    tokens = np.arange(1, prompt + response + 1)
    experts = None if told is None else np.tile(tokens[:told, None, None], (1, LAYERS, TOP_K)).astype(np.uint8)
    return Row(tokens[:prompt], tokens[prompt:], experts)


@pytest.mark.parametrize(("cp", "multiple"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_each_position_has_its_own_experts_wherever_it_lies(cp, multiple):
    rows = [row(3, 5, 7), row(9, 2, 10), row(4, 8, 5), row(6, 6, None)]
    order = [2, 0, 3, 1]
    seen = {OWN: 0}
    for rank in range(cp):
        part = build_micro_batch(order, rows, cp=cp, cp_rank=rank, multiple=multiple)
        assert part.routed_experts.shape == (len(part.tokens), LAYERS, TOP_K)
        for token, chosen in zip(part.tokens.tolist(), part.routed_experts, strict=True):
            (expert,) = set(chosen.flatten().tolist())
            assert expert in (token, OWN)
            seen[expert] = seen.get(expert, 0) + 1
    assert sum(count for expert, count in seen.items() if expert != OWN) == 7 + 10 + 5


def test_of_rows_that_tell_nothing_there_is_nothing_to_take():
    assert build_micro_batch([0], [row(3, 5, None)]).routed_experts is None
    assert build_micro_batch([], [row(3, 5, 7)]).routed_experts is None


def test_experts_take_a_byte_where_that_is_enough():
    assert [dtype_of(256).itemsize, dtype_of(257).itemsize] == [1, 2]
