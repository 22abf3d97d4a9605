"""The experts of a response that several servers sampled, and servers that tell of none."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.rollout.responses import Responses
from megatron_gopd.rollout.routed_experts import refuse_without_experts
from megatron_gopd.servers.client import Answer, SGLangClient
from megatron_gopd.servers.pool import Together
from megatron_gopd.servers.routed_experts import Routers
from tests.servers.stub import stub
from tests.servers.test_replies import of_sampled

ROUTERS = Routers(layers=1, top_k=1, experts=200)
PROMPT, LIMIT = [1, 2, 3, 4], 6


class Servers:
    """A pool whose every answer has two tokens, and tells the number of the answer in the place of its experts."""

    def __init__(self, silent: tuple[int, ...] = ()):
        self._numbers, self._silent = itertools.count(), silent

    async def ask(self, request, together):
        return await request(self)

    async def generate(self, tokens, sampling, routers, first) -> Answer:
        number = next(self._numbers)
        positions = len(tokens) + 2 - 1 - first
        experts = None if number in self._silent else np.full((positions, 1, 1), number, np.uint8)
        finish = "abort" if sampling["max_new_tokens"] > 2 else "length"
        return Answer([7, 8], [-1.0, -1.0], finish, [("0", 2)], experts)


def sampled(servers: Servers) -> list[int]:
    asked = Responses(servers, [], int).whole(PROMPT, LIMIT, {}, Together(), "p0", routers=ROUTERS)
    response = asyncio.run(asked)
    assert len(response.tokens) == LIMIT
    return response.routed_experts.chosen.flatten().tolist()


def test_each_position_has_the_experts_of_the_server_that_came_to_it_first():
    """A server tells of no position for its last token: the next one's first."""
    assert sampled(Servers()) == [0] * 5 + [1] * 2 + [2] * 2


def test_what_one_that_was_cut_short_did_not_tell_the_next_one_does():
    assert sampled(Servers(silent=(0,))) == [1] * 7 + [2] * 2


def test_a_server_that_tells_of_none_is_refused_at_the_start():
    told = r"the rollout server rollout: http://\S+ gave no experts of its tokens, which rollout.replay_routing reads"
    with stub(lambda path, body: of_sampled([[-1.0, 5, None]])) as url, pytest.raises(UserError, match=told):
        asyncio.run(refused(url))


async def refused(url: str) -> None:
    client = SGLangClient(url)
    try:
        await refuse_without_experts([SimpleNamespace(name="rollout", client=client)], ROUTERS)
    finally:
        await client.close()
