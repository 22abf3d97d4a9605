"""Whether a step that SIGTERM comes upon may end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_gopd.errors import StoppedError
from megatron_gopd.runs.interruption import known_by, look
from megatron_gopd.training.grace import Grace, NoTimeError
from tests.training.runs_on_ranks import metrics_of


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(at=1000.0)
    monkeypatch.setattr("megatron_gopd.training.grace.time.monotonic", lambda: now.at)
    return now


@pytest.fixture
def grace_of(clock):
    """grace_of(seconds, told_at) -> of a run whose steps take ten seconds, eight seconds into one."""

    def make(seconds: float | None, told_at: float | None = None) -> Grace:
        grace = Grace(seconds, SimpleNamespace(terminated_at=told_at and 1010 + told_at))
        grace.begins()
        clock.at += 10
        grace.ended()
        grace.begins()
        clock.at += 8
        return grace

    return make


@pytest.mark.parametrize(("seconds", "told_at"), [(None, 8), (1, None), (2.5, 8), (5, 6)])
def test_a_step_that_ends_in_time_goes_on(grace_of, seconds, told_at):
    grace_of(seconds, told_at).look()


@pytest.mark.parametrize(("seconds", "told_at"), [(1.5, 8), (3, 6)])
def test_one_that_would_not_is_given_up(grace_of, seconds, told_at):
    with pytest.raises(NoTimeError, match=rf"would not end within checkpoint.grace_s \({seconds}\)"):
        grace_of(seconds, told_at).look()


def test_of_the_first_step_nobody_knows_how_long_it_takes(clock):
    grace = Grace(5, SimpleNamespace(terminated_at=clock.at))
    grace.begins()
    clock.at += 4
    grace.look()
    clock.at += 2
    with pytest.raises(NoTimeError):
        grace.look()


def test_a_step_that_is_given_up_leaves_the_checkpoint_of_the_last(make_config, distill, monkeypatch):
    config = make_config("given-up", checkpoint={"every": 50, "grace_s": 1.0})
    ended = Grace.ended

    def told(self):
        ended(self)
        if (Path(config.run.folder, "given-up") / "metrics.jsonl").read_text().count("\n") == 1:  # this is step 2
            self._stop.terminated_at = -100.0

    with monkeypatch.context() as patch:
        patch.setattr(Grace, "ended", told)
        with pytest.raises(StoppedError, match=r"grace_s \(1\) after step 2 of 5; the checkpoint of step 2 is in"):
            distill(config)
    distill(config)
    assert [row["step"] for row in metrics_of(Path(config.run.folder, "given-up", "metrics.jsonl"))] == [1, 2, 3, 4, 5]


def test_whoever_waits_hears_of_it_within_the_block():
    def answer():
        raise NoTimeError("now")

    with known_by(answer), pytest.raises(NoTimeError):
        look()
    look()
