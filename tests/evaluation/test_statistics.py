"""Means with standard errors."""

from __future__ import annotations

import math

import pytest

from megatron_gopd.evaluation.statistics import Estimate


def test_mean_and_standard_error():
    assert Estimate.of([1, 2, 3, 4]) == Estimate(2.5, pytest.approx(math.sqrt(5 / 3 / 4)), 4)


def test_equal_values_have_no_error():
    assert Estimate.of([0.1] * 10).standard_error == pytest.approx(0, abs=1e-15)


def test_the_standard_error_of_one_value_is_unknown():
    assert math.isnan(Estimate.of([1.0]).standard_error)


def test_no_values_have_no_mean():
    with pytest.raises(ValueError, match="no values"):
        Estimate.of([])


def test_a_difference_is_paired():
    before, after = [1.0, 5.0, 9.0], [2.0, 6.0, 11.0]
    assert Estimate.of_difference(after, before) == Estimate(pytest.approx(4 / 3), pytest.approx(1 / 3), 3)


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        Estimate.of_difference([1.0, 2.0], [1.0])


def test_it_reads_as_people_write_it():
    assert str(Estimate(0.12345, 0.00678, 9)) == "0.123 +- 0.007"
