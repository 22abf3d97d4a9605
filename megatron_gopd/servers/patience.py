"""HTTP connections that end when they keep the service waiting, and of which there are never too many."""

from __future__ import annotations

import asyncio
import contextlib
import resource

from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 30.0  # until a request is there whole, from when its connection opened or was answered last
MOST_CONNECTIONS, OTHER_FILES = 8192, 256  # that are open at a time
MOST_BYTES = 2**25  # of a request: 64 ids beside each of sixty thousand tokens


class TooLongError(Exception):
    """A request of more than MOST_BYTES."""


class BoundedProtocol(H11Protocol):
    """uvicorn's, which by itself waits for the headers and the body of a request as long as it takes."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._begin_to_wait()
        if len(self.connections) > most_connections():
            kept_waiting = [each for each in self.connections if each.keeps_waiting]
            min(kept_waiting, key=lambda each: each.since).end()

    def connection_lost(self, error: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(error)

    def on_response_complete(self) -> None:
        self._deadline.cancel()
        self._begin_to_wait()
        super().on_response_complete()

    @property
    def keeps_waiting(self) -> bool:
        """No whole request is being answered."""
        return self.cycle is None or self.cycle.more_body or self.cycle.response_complete

    def end(self) -> None:
        self.connections.discard(self)
        self.transport.abort()

    def _begin_to_wait(self) -> None:
        self.since = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_S, self._end_if_kept_waiting)

    def _end_if_kept_waiting(self) -> None:
        if self.keeps_waiting:
            self.end()


def most_connections() -> int:
    """As many as this process may have files open for."""
    return max(1, min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES))


def allow_connections() -> None:
    """Let this process open as many files as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


async def body_of(request: Request) -> bytes:
    """Raises TooLongError, or starlette's ClientDisconnect: whoever asks is gone."""
    told = request.headers.get("content-length", "0")
    if told.isdigit() and int(told) > MOST_BYTES:
        raise TooLongError
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise TooLongError
    return bytes(body)
