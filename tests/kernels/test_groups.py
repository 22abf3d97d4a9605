"""The head cut over real gloo ranks: the same bits at every size, uneven slices, and the bytes that move."""

from __future__ import annotations

import pytest
import torch

import megatron_gopd.mcore  # noqa: F401  tensors of ranks that have Megatron are unpickled by its loader
from tests.kernels.group_on_ranks import (
    CHUNK,
    HIDDEN,
    TOKENS,
    bytes_moved,
    exact_over_sizes,
    refusal_of_nan,
    uneven_slices,
)
from tests.ranks import on_ranks


@pytest.fixture(scope="module")
def exact():
    return on_ranks(8, exact_over_sizes, timeout=290, backends=["cpp", "torch"])


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "slices"])
@pytest.mark.parametrize("mode", ["one_pass", "recompute"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["cpp", "torch"])
def test_exact_mode_gives_the_same_bits_on_1_2_4_and_8_ranks(exact, name, dtype, mode, sliced):
    alone = exact[name, dtype, mode, False, 1]
    for ranks in (1, 2, 4, 8):
        spread = exact[name, dtype, mode, sliced, ranks]
        different = [what for what in alone if not torch.equal(alone[what], spread[what])]
        assert not different, f"{ranks} ranks"


def test_uneven_slices_give_what_one_rank_gives():
    slices = [[9, 0, 30], [1, 1, 1], [0, 0, 0], [0, 40, 0]]
    for found in on_ranks(3, uneven_slices, cases=slices):
        assert max(found.values()) < 5e-6, found


def test_a_nan_in_one_slice_is_refused_on_every_rank_with_its_row():
    row = TOKENS // 2 + 2
    said = on_ranks(2, refusal_of_nan)
    assert said == [f"the log-prob of row {row} is not finite: hidden or weight hold NaN or infinite values"] * 2


def test_collectives_move_no_more_than_they_must():
    tokens, ranks = 96, 2
    moved = on_ranks(ranks, bytes_moved, tokens=tokens)
    statistics, hidden = 16 * tokens * ranks, 2 * HIDDEN * tokens
    assert moved["all_gather_into_tensor"] <= statistics + hidden
    assert moved["reduce_scatter_tensor"] == 4 * HIDDEN * tokens // ranks
    assert "all_to_all_single" not in moved
    assert moved["all_gather_into_tensor at once"] == CHUNK * HIDDEN  # never the hidden states of all tokens
