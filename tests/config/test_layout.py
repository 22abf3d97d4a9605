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
        ("ranks=0-3", Layout(ranks=(0, 3))),
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
        ("ranks=0", "ranks=0: write the first and the last rank: [0, 3], or ranks=0-3 in --layout"),
        ("ranks=0-a", "ranks=0-a: write the first and the last rank"),
        ("ranks=3-2", "ranks=3-2: the first rank comes first"),
    ],
)
def test_a_mistake_is_named(text, expected):
    with pytest.raises(UserError) as caught:
        Layout.parse(text)
    assert str(caught.value).startswith(f"--layout: {expected}")


@pytest.mark.parametrize(
    ("layout", "span"),
    [
        (Layout(), (0, 8)),
        (Layout(tp=2, pp=2, cp=2), (0, 8)),
        (Layout(tp=2, ranks=(2, 3)), (2, 4)),
        (Layout(ep=8), (0, 8)),
    ],
)
def test_a_model_is_held_by_all_ranks_or_by_those_it_names(layout, span):
    assert layout.span(8, "student") == range(*span)


@pytest.mark.parametrize("ranks", [1, 6, 9])
def test_a_layout_that_does_not_divide_the_ranks_is_refused(ranks):
    with pytest.raises(UserError) as caught:
        Layout(tp=2, pp=2).span(ranks, "teachers.math")
    assert str(caught.value) == (
        f"teachers.math: tp 2 x pp 2 x cp 1 = 4 rank(s) a replica, which does not divide the {ranks} rank(s) it is "
        f"given; change the layout or the number of ranks"
    )


def test_experts_that_do_not_divide_the_ranks_are_refused():
    with pytest.raises(UserError, match=r"etp 1 x ep 3 x pp 1 = 3 rank\(s\) a replica of the experts, which does not"):
        Layout(ep=3).span(4, "teachers.moe")


@pytest.mark.parametrize("ranks", [(2, 4), (4, 5)])
def test_a_span_outside_the_job_is_refused(ranks):
    with pytest.raises(UserError, match="does not lie within the 4 rank"):
        Layout(ranks=ranks).span(4, "student")
