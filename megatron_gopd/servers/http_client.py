"""HTTP to one server: bounded, without redirects, and with failures told apart by what helps against them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import aiohttp

from megatron_gopd.servers import replies

IDLE_S = 3.0  # of a connection: SGLang and uvicorn close it after 5, and a request just then would be lost
HEALTH_TIMEOUT_S = 30.0  # SGLang's own health check gives up after 20
MOST_BYTES = 2**26  # of a reply, unless more is asked for


class LostRequestError(Exception):
    """No usable answer: the same may be asked again, here or elsewhere."""


class RefusedError(Exception):
    """The server understood, and said no: asking again would not help."""


class UnknownPathError(RefusedError):
    """The server gives no such thing."""


class HttpClient:
    """One server by its URL. Every method raises LostRequestError or RefusedError."""

    def __init__(self, url: str, token: str | None = None, vocab_size: int | None = None):
        """`vocab_size`: of its model; None: the ids of its replies are not compared with it."""
        self.url, self.vocab_size = url.rstrip("/"), vocab_size
        self.unwell = ""  # what the last look at its health found
        self._headers = {"Accept-Encoding": "identity"}  # a few bytes may else become gigabytes
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None  # of the event loop that asks first

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def healthy(self) -> bool:
        """Whether the server answers: SGLang generates a token for it, unless it is at work anyway."""
        try:
            await self._good("GET", "/health", HEALTH_TIMEOUT_S)
            self.unwell = ""
        except (LostRequestError, RefusedError) as error:
            self.unwell = str(error)
        return not self.unwell

    async def get(self, path: str, timeout: float = HEALTH_TIMEOUT_S) -> dict:
        said = await self._ask("GET", path, timeout)
        if not isinstance(said, dict):
            raise RefusedError(f"{self.url}{path} answered a {type(said).__name__}, not an object")
        return said

    async def post(self, path: str, body: dict, timeout: float | None = None) -> dict | list:
        """`timeout` in seconds; None: as long as it takes."""
        return await self._ask("POST", path, timeout, json=body)

    async def post_for_bytes(self, path: str, body: dict, most: int = MOST_BYTES) -> bytes:
        """As post, for an answer that is no JSON; of at most `most` bytes."""
        return await self._good("POST", path, None, most, json=body)

    async def post_for(
        self, kind: type[replies.Kind], path: str, body: dict, most: int = MOST_BYTES, timeout: float | None = None
    ) -> replies.Kind:
        """As post, for an answer whose shape is known."""
        said = await self._good("POST", path, timeout, most, json=body)
        with self.checking():
            return replies.read(kind, said)

    @contextlib.contextmanager
    def checking(self) -> Iterator[None]:
        """Within the block, a reply is checked."""
        try:
            yield
        except replies.NoJsonError as error:
            raise LostRequestError(f"{self.url} gave {error}") from None
        except ValueError as error:
            raise RefusedError(f"{self.url} gave {error}") from None

    async def _ask(self, method: str, path: str, timeout: float | None, **body) -> dict | list:
        said = await self._good(method, path, timeout, **body)
        try:
            return json.loads(said)
        except (ValueError, RecursionError):
            raise LostRequestError(f"{self.url}{path} answered {message_of(said)!r}, which is not JSON") from None

    async def _good(self, method: str, path: str, timeout: float | None, most: int = MOST_BYTES, **body) -> bytes:
        status, said = await self._request(method, path, timeout, most, **body)
        if status in (408, 429) or status >= 500:
            raise LostRequestError(f"{self.url}{path} answered {status}: {message_of(said)}")
        if 300 <= status < 400:
            raise RefusedError(f"{self.url}{path} answered {status}: that leads elsewhere, and is not followed")
        if status >= 400:
            refused = UnknownPathError if status == 404 else RefusedError
            raise refused(f"{self.url}{path} answered {status}: {message_of(said)}")
        return said

    async def _request(
        self, method: str, path: str, timeout: float | None, most: int = MOST_BYTES, **body
    ) -> tuple[int, bytes]:
        """Status and content of an answer, of at most `most` bytes; through no proxy of the environment, which is not
        meant for these servers, and from nowhere else than where it was asked."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
            self._session = aiohttp.ClientSession(headers=self._headers, connector=connector, auto_decompress=False)
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=10)
        try:
            async with self._session.request(
                method, f"{self.url}{path}", timeout=limits, allow_redirects=False, **body
            ) as reply:
                return reply.status, await self._content(reply, path, most)
        except (aiohttp.ClientError, UnicodeError, TimeoutError) as error:  # UnicodeError: of a host that cannot be
            raise LostRequestError(f"{self.url}{path}: {type(error).__name__} {error}".rstrip()) from None
        except RuntimeError:  # aiohttp's word for a session that close() has ended: the server is started anew
            if not self._session.closed:
                raise
            raise LostRequestError(f"{self.url}{path}: the server was given up meanwhile") from None

    async def _content(self, reply: aiohttp.ClientResponse, path: str, most: int) -> bytes:
        if (coding := reply.headers.get("Content-Encoding", "identity")) != "identity":
            raise RefusedError(f"{self.url}{path} answered in {coding}, which was not asked for")
        content = bytearray()
        async for piece in reply.content.iter_any():
            content += piece
            if len(content) > most:
                raise RefusedError(f"{self.url}{path} answered with more than {most} bytes")
        return bytes(content)


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Within the block, a server is asked about `what`, which leads what is said of a refusal."""
    try:
        yield
    except RefusedError as error:
        raise type(error)(f"{what}: {error}") from None


def message_of(said: bytes) -> str:
    """What a server says of a failure, in one line."""
    try:
        told = json.loads(said)
        told = told.get("error", told.get("message", told)) if isinstance(told, dict) else told
        told = told.get("message", told) if isinstance(told, dict) else told
    except (ValueError, RecursionError):
        told = said.decode(errors="replace")
    return " ".join(str(told).split())[:300]
