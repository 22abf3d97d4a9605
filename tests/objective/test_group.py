"""Group advantages, by hand."""

from __future__ import annotations

import math
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


def weight_of_success(size: int, rate: float) -> float:
    """E[A | success] - E[A | failure] of a response, the others of its group succeeding at `rate`."""

    def mean(reward: float) -> float:
        total = 0.0
        for others in range(size):
            group = [reward] + [1.0] * others + [0.0] * (size - 1 - others)
            probability = math.comb(size - 1, others) * rate**others * (1 - rate) ** (size - 1 - others)
            total += probability * group_advantages(group, [0] * size, normalize_std=True)[0]
        return total

    return mean(1.0) - mean(0.0)


@pytest.mark.parametrize(("rate", "expected"), [(0.5, 1.74), (0.1, 2.18), (0.9, 2.18), (1e-6, 2.47)])
def test_what_a_success_weighs_in_a_group_of_8(rate, expected):
    assert weight_of_success(8, rate) == pytest.approx(expected, abs=5e-3)


def test_a_rare_success_weighs_at_most_what_its_group_allows():
    assert weight_of_success(32, 1e-9) == pytest.approx(31 / math.sqrt(32), rel=1e-5)


def test_in_a_large_group_it_weighs_one_over_the_deviation():
    assert weight_of_success(256, 0.2) == pytest.approx(1 / math.sqrt(0.2 * 0.8), rel=0.01)
