"""A batch of responses under way at the servers."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Generic, TypeVar

from megatron_gopd.runs import interruption
from megatron_gopd.servers.pool import ServerPool

Result = TypeVar("Result")  # such as a response
CHUNKS = 4  # what scoring overlaps with generation: a quarter of the batch is enough to be handed out
HEARTBEAT_S = 60.0  # the other ranks wait in a collective meanwhile, which has a timeout of its own


class Turn(Enum):
    """What rank 0 may say in the place of trajectories."""

    WAIT = "not enough is finished yet"
    UPDATE = "a server that was started anew needs the weights first"
    END = "all trajectories were handed out"


class Batch(Generic[Result]):
    """Requests that run in the background from the constructor on, and what came of them."""

    def __init__(
        self,
        pool: ServerPool,
        requests: Sequence[Callable[[], Awaitable[Result]]],
        most_at_a_time: int,
        fills: Callable[[Sequence[Result]], bool] = lambda results: False,
    ):
        """`fills`: whether so many results are enough for those who wait for them."""
        self._pool, self._total, self._handed_out, self._fills = pool, len(requests), 0, fills
        self._finished: queue.SimpleQueue[tuple[int, Result]] = queue.SimpleQueue()
        self._chunk: list[tuple[int, Result]] = []  # that grows, until it is large enough
        self._task = pool.background.start(self._run(requests, most_at_a_time))

    def take(self) -> list[tuple[int, Result]] | Turn:
        """All that is finished, with its number among the requests, as soon as it is enough: a quarter of the batch,
        the rest, or what fills those who wait.

        Raises:
            UserError: of the first request that cannot be answered.
        """
        if self._handed_out == self._total:
            return Turn.END
        enough = min(-(-self._total // CHUNKS), self._total - self._handed_out)
        deadline = time.monotonic() + HEARTBEAT_S
        while not self._is(enough) or not self._finished.empty():
            try:
                self._chunk.append(self._finished.get(timeout=0.1))
            except queue.Empty:
                interruption.look()
                if self._task.done():
                    self._task.result()
                if self._pool.stale:
                    break
                if time.monotonic() > deadline:
                    return Turn.WAIT
        chunk, self._chunk = self._chunk, []
        self._handed_out += len(chunk)
        return chunk or Turn.UPDATE

    def _is(self, enough: int) -> bool:
        """Whether the chunk is."""
        return len(self._chunk) >= enough or bool(self._chunk and self._fills([result for _, result in self._chunk]))

    def cancel(self) -> None:
        """Ask for no more; servers drop what they work on when its connection closes."""
        self._task.cancel()

    async def _run(self, requests: Sequence[Callable[[], Awaitable[Result]]], most_at_a_time: int) -> None:
        free = asyncio.Semaphore(most_at_a_time)

        async def one(number: int, request: Callable[[], Awaitable[Result]]) -> None:
            async with free:
                self._finished.put((number, await request()))

        try:
            async with asyncio.TaskGroup() as group:  # the first failure ends the others
                for number, request in enumerate(requests):
                    group.create_task(one(number, request))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
