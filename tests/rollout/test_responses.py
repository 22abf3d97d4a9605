"""Whole responses, of servers that cut them short."""

from __future__ import annotations

import asyncio

import pytest

from megatron_gopd.rollout.responses import Ending, Responses
from megatron_gopd.servers.client import Answer
from megatron_gopd.servers.pool import Together


class Pool:
    """Hands out answers, one a request; `during` is called while each is under way."""

    def __init__(self, *answers: Answer, during=None):
        self.answers, self.during, self.asked, self.aborted = list(answers), during, [], []

    async def ask(self, request, together):
        return await request(self)

    async def generate(self, tokens, sampling, rid=None):
        self.asked.append((tokens, sampling["max_new_tokens"], rid))
        if self.during:
            await self.during()
        return self.answers.pop(0)

    async def abort(self, rid):
        self.aborted.append(rid)


def answer(count: int, finish: str, *versions: tuple[str, int]) -> Answer:
    return Answer([7] * count, [-1.0] * count, finish, list(versions or [("0", count)]))


def whole(pool: Pool, limit: int = 10, ending: Ending | None = None):
    return asyncio.run(Responses(pool, [2], int).whole([1, 2], limit, {}, Together(), "prompt 'p'", ending))


def test_what_was_cut_short_is_continued_from_there():
    pool = Pool(answer(3, "abort"), answer(2, "stop"))
    assert len(whole(pool).tokens) == 5
    assert [asked[:2] for asked in pool.asked] == [([1, 2], 10), ([1, 2, 7, 7, 7], 7)]


def test_every_token_has_its_weights():
    pool = Pool(answer(3, "abort", ("4", 1), ("5", 2)), answer(2, "stop", ("6", 2)))
    assert whole(pool).versions == ((4, 1), (5, 2), (6, 2))


def test_one_that_is_ended_stays_where_it_is():
    ending = Ending()
    pool = Pool(answer(3, "abort"), during=ending.end)
    response = whole(pool, ending=ending)
    assert (len(response.tokens), response.finished, response.ended_by_age) == (3, False, True)
    assert pool.aborted == [pool.asked[0][2]]


def test_one_that_ends_by_itself_at_that_moment_is_whole():
    ending = Ending()
    response = whole(Pool(answer(3, "stop"), during=ending.end), ending=ending)
    assert response.finished and not response.ended_by_age


def test_nothing_is_aborted_before_it_is_asked():
    ending = Ending()
    asyncio.run(ending.end())
    assert ending.wanted


@pytest.mark.parametrize("limit", [3, 4])
def test_the_limit_ends_a_response_too(limit):
    pool = Pool(answer(3, "length"), answer(1, "length"))
    response = whole(pool, limit, Ending())
    assert (len(response.tokens), response.finished, response.ended_by_age) == (limit, False, False)
