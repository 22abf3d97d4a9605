"""Layouts as text, and how many replicas they leave."""

from __future__ import annotations

import pytest

from megatron_gopd.config import Layout
from megatron_gopd.errors import UserError


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("", Layout()),
        ("tp=2", Layout(tp=2)),
        (" tp=2, sequence_parallel=true ", Layout(tp=2, sequence_parallel=True)),
        ("pp=2,ep=4,", Layout(pp=2, ep=4)),
    ],
)
def test_text_is_read(text, layout):
    assert Layout.parse(text) == layout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tpp=2", "cannot read 'tpp=2'; write key=value with the keys tp, pp, cp, ep, etp, sequence_parallel"),
        ("tp", "cannot read 'tp'; write key=value"),
        ("tp=0", "tp=0: Input should be greater than or equal to 1"),
        ("tp=two", "tp=two: Input should be a valid integer"),
        ("tp=2,tp=4", "the key 'tp' stands in 'tp=2,tp=4' twice"),
    ],
)
def test_a_mistake_is_named(text, expected):
    with pytest.raises(UserError) as caught:
        Layout.parse(text)
    assert str(caught.value).startswith(f"--layout: {expected}")


@pytest.mark.parametrize(
    ("layout", "replicas"), [(Layout(), 8), (Layout(tp=2), 4), (Layout(tp=2, pp=2), 2), (Layout(tp=2, pp=2, cp=2), 1)]
)
def test_data_parallelism_takes_the_ranks_that_are_left(layout, replicas):
    assert layout.data_parallel(8, "student") == replicas


@pytest.mark.parametrize("ranks", [1, 6, 9])
def test_a_layout_that_does_not_divide_the_ranks_is_refused(ranks):
    with pytest.raises(UserError) as caught:
        Layout(tp=2, pp=2).data_parallel(ranks, "teachers.math")
    assert str(caught.value) == (
        f"teachers.math: tp 2 x pp 2 x cp 1 = 4 ranks a replica, which does not divide the {ranks} rank(s) of this "
        f"job; change the layout or the number of ranks"
    )
