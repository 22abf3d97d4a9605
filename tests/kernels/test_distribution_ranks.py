"""Student, teacher and reference cut over real gloo ranks: the same bits at every size, and uneven slices."""

from __future__ import annotations

from tests.kernels.distribution_on_ranks import cut_and_whole, exact_over_sizes
from tests.ranks import on_ranks


def test_exact_mode_gives_the_same_bits_on_1_2_and_4_ranks():
    found = on_ranks(4, exact_over_sizes, timeout=290, backends=["cpp", "torch"])
    assert len(found) == 30
    assert not {case: different for case, different in found.items() if different}


def test_heads_cut_over_ranks_give_what_whole_ones_give():
    """The last shards of unequal length, or wholly past the shared ids."""
    for case, found in on_ranks(4, cut_and_whole, slices=[None, [9, 0, 30, 3], [0, 0, 0, 0]]).items():
        assert max(found.values()) < 1e-5, (case, found)
