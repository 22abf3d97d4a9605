"""The curve is drawn as the run goes, and takes little of its time."""

from __future__ import annotations

import json

import pytest

from megatron_gopd.evaluation import curve
from megatron_gopd.evaluation.curve import CurveSink
from megatron_gopd.evaluation.report import plot_curve

ROW = {"loss": 0.5, "reverse_kl": 0.1, "response_tokens_mean": 4.0, "entropy": 1.0}


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """(sink, when it drew, the clock in seconds); a drawing takes 2 s."""
    times, clock = [], [0.0]

    def draw(metrics, target):
        times.append(clock[0])
        clock[0] += 2.0

    monkeypatch.setattr(curve.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(curve, "plot_curve", draw)
    return CurveSink(tmp_path / "metrics.jsonl", tmp_path / "curve.png"), times, clock


def test_it_draws_after_ten_seconds_and_then_a_hundredth_of_the_time(drawn):
    sink, times, clock = drawn
    for step in range(1, 500):
        clock[0] += 1.0
        sink.log(step, ROW)
    assert times == [11.0, 214.0, 417.0]


def test_an_evaluation_before_the_first_step_does_not_put_the_curve_off(drawn):
    sink, times, clock = drawn
    clock[0] += 60.0
    sink.log(0, {})
    sink.log(1, ROW)
    assert times == [60.0]


def test_the_end_draws_what_is_new_and_nothing_twice(drawn):
    sink, times, _ = drawn
    sink.close()
    assert times == []
    sink.log(1, ROW)
    sink.draw()
    sink.close()
    assert len(times) == 1


def test_a_row_of_an_evaluation_before_the_first_step_is_no_point(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 0, "eval/math": 0.5}) + "\n")
    sink = CurveSink(metrics, tmp_path / "curve.png")
    sink.log(0, {})
    sink.draw()
    plot_curve(metrics, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
    with metrics.open("a") as file:
        file.write(json.dumps({"step": 1} | ROW) + "\n")
    sink.log(1, ROW)
    sink.close()
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
