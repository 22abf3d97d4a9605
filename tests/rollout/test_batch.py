"""What is handed out of a batch under way, without servers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from megatron_gopd.rollout import batch as batches
from megatron_gopd.rollout.batch import Batch, Turn
from megatron_gopd.servers.loop import Background


@pytest.fixture
def background():
    loop = Background()
    yield loop
    loop.close()


def test_what_fills_a_pass_is_handed_out_before_it_is_a_quarter_of_the_batch(background):
    async def answer(number):
        return number if number < 2 else await asyncio.Event().wait()

    requests = [lambda number=number: answer(number) for number in range(16)]
    batch = Batch(SimpleNamespace(background=background, stale=[]), requests, 16, lambda found: sum(found) >= 1)
    assert sorted(batch.take()) == [(0, 0), (1, 1)]
    batch.cancel()


def test_who_waits_for_a_quarter_of_the_batch_hears_that_it_goes_on(background, monkeypatch):
    monkeypatch.setattr(batches, "HEARTBEAT_S", 0.3)
    more = asyncio.Event()

    async def answer(number):
        if number:
            await more.wait()
        return number

    requests = [lambda number=number: answer(number) for number in range(8)]
    batch = Batch(SimpleNamespace(background=background, stale=[]), requests, 8)
    turns = background.start(asyncio.to_thread(batch.take))
    try:
        assert turns.result(timeout=30) is Turn.WAIT  # one of eight is finished, and is not lost
    finally:
        background._loop.call_soon_threadsafe(more.set)
    handed_out = []
    while (turn := batch.take()) is not Turn.END:
        handed_out += turn if turn is not Turn.WAIT else []
    assert sorted(handed_out) == [(number, number) for number in range(8)]
