"""linear_logprob with the vocabulary cut over two real ranks."""

from __future__ import annotations

import pytest

from tests.kernels.cut_vocabulary import VOCABULARY, compare
from tests.ranks import on_ranks


@pytest.fixture(scope="module")
def compared():
    return on_ranks(2, compare)


@pytest.mark.parametrize("what", ["logprobs", "entropy"])
def test_values_are_those_of_the_whole_head(compared, what):
    assert compared[what] < 1e-12


def test_the_whole_distribution_is_that_of_the_whole_head(compared):
    assert compared["whole distribution"] < 1e-5  # float32


def test_hidden_gradients_sum_to_that_of_the_whole_head(compared):
    assert compared["hidden gradient"] < 1e-12


def test_each_rank_has_its_rows_of_the_weight_gradient(compared):
    assert compared["weight gradient"] < 1e-12


def test_padding_rows_get_no_gradient(compared):
    assert compared["padding gradient"] == 0


def test_a_target_in_no_shard_is_refused(compared):
    assert compared["refused"] == f"target {VOCABULARY} lies outside the vocabulary"
