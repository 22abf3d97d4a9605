"""What of a step's seconds is waiting."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest


@pytest.fixture
def step(monkeypatch):
    """step(engine) -> the seconds of a step of two chunks: 10 s each until they come, 3 s to score each, and 2 s until
    servers have scored; the clock moves when it is told."""
    from megatron_gopd.runs import Spans
    from megatron_gopd.training.session import Session

    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def chunks(step):
        for chunk in "ab":
            now[0] += 10
            yield chunk

    def wait():
        now[0] += 2

    def run(engine: str) -> dict[str, float]:
        config = SimpleNamespace(rollout=SimpleNamespace(engine=engine))
        job = SimpleNamespace(
            config=config, batches=SimpleNamespace(of=chunks), scorers=SimpleNamespace(wait=wait, prepare=lambda: None)
        )
        session = Session.__new__(Session)  # the rest of it does nothing here
        session.job, session.spans = job, Spans()
        for _ in session.chunks(1):
            with session.spans("score"):
                now[0] += 3
        session.scored()
        return session.spans.take()

    return run


def test_scores_are_waited_for_from_the_last_response_on(step):
    assert step("sglang")["wait_for_score"] == 3 + 2
    assert step("sglang")["score"] == 3 + 3 + 2


def test_responses_are_waited_for_where_servers_sample(step):
    assert step("sglang")["wait_for_rollout"] == step("sglang")["rollout"] == 20
    assert "wait_for_rollout" not in step("transformers")
