"""Responses that are sampled without end, while steps train on those that are there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from megatron_gopd.data.trajectory import Prompt
from megatron_gopd.rollout.admission import Pending
from megatron_gopd.rollout.batch import CHUNKS, HEARTBEAT_S, Turn
from megatron_gopd.rollout.responses import Ending
from megatron_gopd.rollout.sampling import Response
from megatron_gopd.runs import interruption
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.pool import ServerPool, Together

POLL_S = 0.1


@dataclass(eq=False)
class Asked:
    """A prompt whose responses are under way or there, and not trained on."""

    pending: Pending
    number: int  # among the prompts of the run
    prompt: Prompt
    key: list[int]  # of the random numbers of its samples
    early: int = 0  # steps before its turn in the data's order
    together: Together = field(default_factory=Together)
    under_way: dict[int, Ending] = field(default_factory=dict)  # by sample
    responses: dict[int, Response] = field(default_factory=dict)  # by sample


class Taken(NamedTuple):
    """What every rank is told of a prompt in the batch; its parts are as of Asked."""

    number: int
    early: int
    responses: list[Response]  # of samples 0, 1, ...


class Feed(Protocol):
    """What decides which prompts begin, and which a step trains on. Asked from several threads."""

    batch_size: int

    @property
    def whole(self) -> bool:
        """Whether the step has its batch."""

    def turn_to(self, step: int) -> list[Asked]:
        """The weights that train in `step` are there. Those whose responses are to end now."""

    def draw(self) -> Asked | None:
        """The next prompt; None: not now."""

    def finish(self, asked: Asked) -> None:
        """All its responses are there."""

    def take(self) -> Asked | None:
        """The next of the step's batch; None: it is whole, or waits for others to finish."""


class Stream:
    """Requests that run in the background from the constructor on, as many as there are places."""

    def __init__(
        self,
        pool: ServerPool,
        feed: Feed,
        respond: Callable[[Asked, int, Ending], Awaitable[Response]],
        *,
        samples: int,
        places: int,
        fills: Callable[[Sequence[Response]], bool] = lambda responses: False,
    ):
        """
        Args:
            respond: samples the response of that number to a prompt.
            samples: of each prompt.
            places: requests at a time.
            fills: whether so many responses are enough for those who wait for them.
        """
        self._pool, self._feed, self._respond, self._fills = pool, feed, respond, fills
        self._samples, self._places = samples, places
        self._chunk: list[Taken] = []  # that grows, until it is large enough
        self._more = asyncio.Event()  # prompts may begin
        self._finished = threading.Event()  # since the last look
        self._task = pool.background.start(self._run())

    def turn_to(self, step: int) -> None:
        """The weights that train in `step` are there."""
        for asked in self._feed.turn_to(step):
            self._pool.background.start(_end(asked))
        self._wake()

    def take(self) -> list[Taken] | Turn:
        """What goes into the batch next, as soon as it is a quarter, the rest, or what fills those who wait.

        Raises:
            UserError: of the first request that cannot be answered.
        """
        deadline = time.monotonic() + HEARTBEAT_S
        while not self._fill() or not self._is_enough:
            if self._feed.whole:
                return Turn.END
            interruption.look()
            if self._task.done():
                self._task.result()
            if self._pool.stale:
                break
            if time.monotonic() > deadline:
                return Turn.WAIT
            self._finished.wait(POLL_S)
            self._finished.clear()
        chunk, self._chunk = self._chunk, []
        return chunk or Turn.UPDATE

    def _fill(self) -> bool:
        """Whether there is something to hand out."""
        while asked := self._feed.take():
            responses = [asked.responses[sample] for sample in range(self._samples)]
            self._chunk.append(Taken(asked.number, asked.early, responses))
            self._wake()
        return bool(self._chunk)

    @property
    def _is_enough(self) -> bool:
        if self._feed.whole or len(self._chunk) >= -(-self._feed.batch_size // CHUNKS):
            return True
        return self._fills([response for taken in self._chunk for response in taken.responses])

    def _wake(self) -> None:
        async def wake() -> None:
            self._more.set()

        self._pool.background.start(wake())

    async def _run(self) -> None:
        free, queued = asyncio.Semaphore(self._places), deque()

        async def one(asked: Asked, sample: int) -> None:
            asked.under_way[sample] = ending = Ending()
            asked.responses[sample] = await self._respond(asked, sample, ending)
            del asked.under_way[sample]
            free.release()
            if len(asked.responses) == self._samples:
                self._feed.finish(asked)
                self._finished.set()

        try:
            async with asyncio.TaskGroup() as group:  # the first failure ends the others
                while True:
                    await free.acquire()
                    if not queued:
                        asked = await self._next()
                        queued += ((asked, sample) for sample in range(self._samples))
                    group.create_task(one(*queued.popleft()))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _next(self) -> Asked:
        while True:
            self._more.clear()
            if asked := self._feed.draw():
                return asked
            await self._more.wait()


async def _end(asked: Asked) -> None:
    """What a server does not hear goes on: it is asked again at the next update."""
    with contextlib.suppress(LostRequestError, RefusedError):
        await asyncio.gather(*(ending.end() for ending in asked.under_way.values()))
