"""How servers give memory away and take it back; they are stand-ins that say what a real one might."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from megatron_gopd.config.models import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.memory import Memory
from megatron_gopd.servers.server import State
from megatron_gopd.servers.supervisor import LostServersError

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"


class StandIn:
    """`answers`: an exception for each request that fails, None for others; then it does as it is told."""

    def __init__(self, *answers: Exception | None, busy: int = 0):
        self.client, self.state, self.lives = self, State.READY, 1
        self.asked, self._answers, self._busy = [], list(answers), busy

    async def flush(self) -> str | None:
        self._busy -= 1
        return "400 pending requests" if self._busy >= 0 else None

    async def post(self, path: str, body: dict, timeout: float) -> None:
        self.asked.append(path)
        answer = self._answers.pop(0) if self._answers else None
        if answer:
            raise answer

    def __str__(self) -> str:
        return "rollout-0"


def memory_of(*servers: StandIn, patience_s: float = 5) -> Memory:
    async def up(server):
        assert server.state is State.READY

    async def lost(server, why):
        server.lives += 1

    settings = Servers(patience_s=patience_s)
    return Memory(SimpleNamespace(settings=settings, servers=servers, up=up, lost=lost, fatal=None))


def do(memory: Memory, *words: str) -> None:
    async def all_of_them():
        for word in words:
            await getattr(memory, word)()

    asyncio.run(all_of_them())


def test_a_server_that_is_still_at_work_is_waited_for():
    server = StandIn(busy=3)
    do(memory_of(server), "release", "occupy")
    assert server.asked == [RELEASE, RESUME]


def test_one_that_does_not_become_idle_is_told_of():
    began = time.monotonic()
    with pytest.raises(UserError, match=r"rollout-0 does not release its memory: after 0.2 s .*400 pending requests"):
        do(memory_of(StandIn(busy=10**9), patience_s=0.2), "release")
    assert time.monotonic() - began < 5


def test_one_that_refuses_is_told_of():
    with pytest.raises(UserError, match="rollout-0 does not release its memory: no saver"):
        do(memory_of(StandIn(RefusedError("no saver"))), "release")
    with pytest.raises(UserError, match="rollout-0 does not resume its memory: out of memory"):
        do(memory_of(StandIn(None, RefusedError("out of memory"))), "release", "occupy")


def test_one_that_is_started_anew_gives_its_memory_away_too():
    server = StandIn(LostRequestError("gone"))
    do(memory_of(server), "release", "occupy")
    assert server.asked == [RELEASE, RELEASE, RESUME]


def test_one_that_is_lost_again_and_again_ends_the_run():
    with pytest.raises(LostServersError, match="3 times in a row when it was to release its memory, at last: gone"):
        do(memory_of(StandIn(*[LostRequestError("gone")] * 3)), "release")


def test_one_that_was_started_anew_meanwhile_has_its_memory():
    server = StandIn()
    memory = memory_of(server)
    do(memory, "release")
    server.lives += 1
    do(memory, "occupy")
    assert server.asked == [RELEASE]


def test_memory_that_nobody_gave_away_is_not_asked_for():
    server = StandIn()
    do(memory_of(server), "occupy")
    assert server.asked == []


def test_what_is_given_away_is_not_given_away_again():
    server = StandIn()
    do(memory_of(server), "release", "release", "occupy")
    assert server.asked == [RELEASE, RESUME]


def test_a_run_that_ends_for_want_of_servers_asks_none():
    server = StandIn()
    memory = memory_of(server)
    memory._supervisor.fatal = LostServersError("gone")
    do(memory, "release")
    assert server.asked == []
