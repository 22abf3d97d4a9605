from __future__ import annotations

import time

import pytest

from megatron_gopd.runs import Spans
from megatron_gopd.runs.spans import tell


@pytest.fixture(autouse=True)
def nothing_told():
    """By a test of another file."""
    Spans().take()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told: clock(seconds)."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def slow_chunks(clock):
    for chunk in (1, 2):
        clock(10)
        yield chunk
    clock(3)


def test_seconds_of_one_name_add_up(clock):
    spans = Spans()
    for seconds in (1, 2):
        with spans("score"):
            clock(seconds)
        clock(100)
    assert spans.take() == {"score": 3}


def test_take_starts_anew(clock):
    spans = Spans()
    with spans("score"):
        clock(1)
    spans.take()
    assert spans.take() == {}


def test_a_span_that_raises_counts(clock):
    spans = Spans()
    with pytest.raises(KeyError), spans("train"):
        clock(2)
        raise KeyError
    assert spans.take() == {"train": 2}


def test_over_counts_the_wait_for_the_items_and_not_the_body(clock):
    spans = Spans()
    seen = []
    for chunk in spans.over("rollout", slow_chunks(clock)):
        with spans("score"):
            clock(5)
        clock(100)
        seen.append(chunk)
    assert seen == [1, 2]
    assert spans.take() == {"rollout": 23, "score": 10}


def test_over_lets_the_error_of_the_items_out_and_counts_it(clock):
    def broken():
        clock(4)
        raise OSError("gone")
        yield

    spans = Spans()
    with pytest.raises(OSError, match="gone"):
        list(spans.over("rollout", broken()))
    assert spans.take() == {"rollout": 4}


def test_a_span_inside_another_counts_under_both_names(clock):
    spans = Spans()
    with spans("step"), spans("train"):
        clock(2)
    assert spans.take() == {"step": 2, "train": 2}


def test_each_entry_is_announced(clock):
    entered = []
    spans = Spans(on_enter=entered.append)
    for _ in spans.over("rollout", slow_chunks(clock)):
        with spans("score"):
            pass
    assert entered == ["rollout", "score", "rollout", "score", "rollout"]


def test_what_somebody_without_spans_measured_is_taken_once():
    spans = Spans()
    tell("servers_paused", 0.25)
    tell("servers_paused", 0.5)
    assert spans.take() == {"servers_paused": 0.75}
    assert spans.take() == {}


def test_seconds_are_those_of_the_wall_clock():
    spans = Spans()
    with spans("sleep"):
        time.sleep(0.05)
    assert 0.05 <= spans.take()["sleep"] < 5
