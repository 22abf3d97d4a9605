"""How many threads a decoding step runs on."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.rollout.threads import PAYS, suited_threads

WIDE = 256
PAYING = PAYS // (2 * WIDE * WIDE)  # rows


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "threads"), [(PAYING - 1, 1), (PAYING, 2)])
def test_small_products_are_left_to_one(rows, threads, two_threads):
    with suited_threads(torch.nn.Linear(WIDE, WIDE)) as suit:
        suit(rows)
        assert torch.get_num_threads() == threads


def test_the_others_have_theirs_back(two_threads):
    with suited_threads(torch.nn.Linear(WIDE, WIDE)) as suit:
        suit(1)
    assert torch.get_num_threads() == 2
