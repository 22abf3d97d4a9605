"""Group advantages, by hand."""

from __future__ import annotations

import statistics

import pytest

from megatron_gopd.objective import group_advantages

REWARDS, GROUPS = [1.0, 5.0, 0.0, 1.0, 6.0], ["a", "b", "a", "a", "b"]


def test_the_mean_of_the_group_is_taken_off():
    assert group_advantages(REWARDS, GROUPS, normalize_std=False) == pytest.approx([1 / 3, -0.5, -2 / 3, 1 / 3, 0.5])


def test_the_division_is_by_the_unbiased_standard_deviation():
    plain = group_advantages(REWARDS, GROUPS, normalize_std=False)
    spread = {"a": statistics.stdev([1, 0, 1]), "b": statistics.stdev([5, 6])}
    expected = [value / (spread[group] + 1e-6) for value, group in zip(plain, GROUPS, strict=True)]
    assert group_advantages(REWARDS, GROUPS, normalize_std=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [1.0], []], ids=["equal", "alone", "empty"])
def test_a_group_that_tells_nothing_apart_has_no_advantage(rewards, normalize):
    """0.1 three times: its float mean is not 0.1."""
    assert group_advantages(rewards, ["x"] * len(rewards), normalize_std=normalize) == [0.0] * len(rewards)
