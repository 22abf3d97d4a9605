"""Means and paired differences over problems and seeds, against what is computed by hand."""

from __future__ import annotations

import math

import pytest

from megatron_gopd.evaluation.statistics import Estimate
from megatron_gopd.evaluation.study.scores import Measured, average, in_blocks, smoothed

OURS = {1: {"a": 1.0, "b": 0.5, "c": 0.0}, 2: {"a": 0.8, "b": 0.7, "c": 0.3}}
GIVEN = {None: {"c": 0.1, "a": 0.5, "b": 0.6, "d": 9.0}}


def test_problems_are_averaged_over_seeds_and_seeds_over_problems():
    found = Measured.of(OURS)
    assert (found.mean, found.over_items) == (
        pytest.approx(0.55),
        pytest.approx(Estimate.of([0.9, 0.6, 0.15]).standard_error),
    )
    assert found.over_seeds == pytest.approx(Estimate.of([0.5, 0.6]).standard_error)
    assert found.standard_error == pytest.approx(math.hypot(found.over_items, found.over_seeds))


def test_one_seed_has_the_spread_over_problems_alone():
    found = Measured.of({7: OURS[1]})
    assert (found.seeds, found.standard_error) == (1, found.over_items)


def test_a_difference_pairs_problems_by_id_and_leaves_out_what_only_one_was_asked():
    found = Measured.difference(OURS, GIVEN)
    assert found.items == 3
    assert found.over_items == pytest.approx(Estimate.of([0.4, 0.0, 0.05]).standard_error)
    assert found.of_seed == pytest.approx({1: 0.5 - 0.4, 2: 0.6 - 0.4})


def test_seeds_that_both_have_are_paired():
    shifted = {seed: {id: value - 0.25 for id, value in values.items()} for seed, values in OURS.items()}
    found = Measured.difference(OURS, shifted | {3: {"a": 0.0, "b": 0.0, "c": 0.0}})
    assert (found.mean, found.over_seeds) == (pytest.approx(0.25), pytest.approx(0.0, abs=1e-12))


def test_without_a_seed_in_common_the_spreads_add_up():
    others = {seed + 10: values for seed, values in OURS.items()}
    found = Measured.difference(OURS, others)
    assert found.mean == pytest.approx(0.0)
    assert found.over_seeds == pytest.approx(math.sqrt(2) * Measured.of(OURS).over_seeds)


def test_nothing_in_common_is_no_difference():
    assert Measured.difference(OURS, {None: {"z": 1.0}}) is None


def test_suites_are_independent_but_seeds_are_the_same_models():
    found = average([Measured.of(OURS), Measured.of({1: {"x": 0.0, "y": 1.0}, 2: {"x": 0.2, "y": 1.0}})])
    assert found.of_seed == pytest.approx({1: 0.5, 2: 0.6})
    errors = [Measured.of(OURS).over_items, Estimate.of([0.1, 1.0]).standard_error]
    assert found.over_items == pytest.approx(math.hypot(*errors) / 2)


def test_smoothing_is_the_papers():
    assert smoothed([1.0, 0.0, 1.0]) == [1.0, 0.5, 0.75]


def test_blocks_are_consecutive_and_cover_every_step():
    assert in_blocks({step: float(step) for step in range(1, 9)}, blocks=4) == {"0": 1.5, "1": 3.5, "2": 5.5, "3": 7.5}
