"""One server of a pool: where it is, how it does, and how to start it anew."""

from __future__ import annotations

import asyncio
import time
from enum import Enum

from megatron_gopd.errors import UserError
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.homes import Here, There
from megatron_gopd.servers.keeper import KeptProcess
from megatron_gopd.servers.launch import Launch
from megatron_gopd.servers.process import ServerProcess

POLL_S = 0.5
STARTS = 3  # in a row, without a good answer in between


class State(Enum):
    DOWN = "does not answer"
    STALE = "answers, but has not the current weights"
    READY = "takes requests"


class Server:
    """Its client, and its process where the run starts it."""

    def __init__(
        self,
        name: str,
        url: str | None = None,
        token: str | None = None,
        home: Here | There | None = None,
        vocab_size: int | None = None,
    ):
        """`url`: of an external server; without one, start() makes a process at its `home`."""
        self.name, self.url, self.token = name, url, home.token if home else token
        self.home = home
        self.managed = home is not None
        self.state = State.DOWN
        self.process: ServerProcess | KeptProcess | None = None
        self._vocab_size = vocab_size
        self.client = SGLangClient(url, token, vocab_size) if url else None
        self.requests: set[asyncio.Task] = set()  # under way
        self.done, self.tokens = 0, 0  # requests, and tokens of their answers
        self.failing_since: float | None = None  # requests
        self.mute_since: float | None = None  # its health
        self.rests_until = 0.0
        self.starts = 0  # since the last good answer
        self.lives = 0  # how often it was up, here or elsewhere: each time it knows nothing of the last
        self._worked_s, self._busy_since = 0.0, None

    def __str__(self) -> str:
        return f"{self.name} ({self.url})"

    def begin(self, request: asyncio.Task) -> None:
        """It is asked, and is at work until the last end()."""
        if not self.requests:
            self._busy_since = time.monotonic()
        self.requests.add(request)

    def end(self, request: asyncio.Task) -> None:
        self.requests.discard(request)
        if not self.requests:
            self._worked_s, self._busy_since = self.worked_s, None

    @property
    def worked_s(self) -> float:
        """Seconds in which there were requests under way."""
        busy_since = self._busy_since
        return self._worked_s + (time.monotonic() - busy_since if busy_since else 0.0)

    def answered(self, tokens: int) -> None:
        """A request, with as many."""
        self.failing_since, self.rests_until, self.starts = None, 0.0, 0
        self.done, self.tokens = self.done + 1, self.tokens + tokens

    def failed(self) -> None:
        """A request was lost: others are asked first for a while, longer as it goes on."""
        now = time.monotonic()
        self.failing_since = self.failing_since or now
        self.rests_until = now + min(5.0, 0.1 + (now - self.failing_since) / 2)

    def silent_for(self) -> float:
        """Seconds since it last did well."""
        now = time.monotonic()
        return now - min(self.failing_since or now, self.mute_since or now)

    def drop_requests(self) -> None:
        """End what waits for its answers; the pool asks again elsewhere."""
        self.state = State.DOWN
        for task in self.requests:
            task.cancel()

    async def start(self, launch: Launch, timeout: float) -> None:
        """Start the process, whatever ran before, and wait until it answers.

        Raises:
            UserError: it ended, or did not answer in time; with the end of its log.
        """
        self.stop()
        if self.client:
            await self.client.close()
        self.starts += 1
        self.process, self.url = await self.home.start(launch)
        self.client = SGLangClient(self.url, self.token, self._vocab_size)
        deadline = time.monotonic() + timeout
        while not await self.client.healthy():
            code = self.process.exit_code
            if code is not None or time.monotonic() > deadline:
                what = f"did not answer within {timeout:g} s" if code is None else f"ended with exit code {code}"
                raise UserError(f"the server {self} {what}; {self.process.last_words()}")
            await asyncio.sleep(POLL_S)
        self.failing_since = self.mute_since = None
        self.rests_until = 0.0

    def stop(self) -> None:
        if self.process:
            self.process.stop()
            self.process = None
