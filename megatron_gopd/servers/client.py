"""HTTP to one SGLang server. Source of the API: sglang/srt/entrypoints/http_server.py, 0.5.23."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from megatron_gopd.servers import replies
from megatron_gopd.servers.top_logprobs import Scored, top_logprobs

SCORED_AT_A_TIME = 4096  # response tokens of one request
IDLE_S = 3.0  # of a connection: SGLang and uvicorn close it after 5, and a request just then would be lost
HEALTH_TIMEOUT_S = 30.0  # SGLang's own health check gives up after 20
MOST_BYTES, BYTES_OF_TOP = 2**26, 64  # of a reply, and more for each of the most likely tokens that are asked for


class LostRequestError(Exception):
    """No usable answer: the same may be asked again, here or elsewhere."""


class RefusedError(Exception):
    """The server understood, and said no: asking again would not help."""


class UnknownPathError(RefusedError):
    """The server gives no such thing."""


@dataclass
class Answer:
    """A sampled response, as far as it came."""

    tokens: list[int]
    logprobs: list[float]  # nats, at the sampling temperature, before top-p and top-k
    finish: str  # stop, length, or abort: cut short by the server
    weight_version: str  # of the weights that sampled the first token

    def __len__(self) -> int:
        return len(self.tokens)


class SGLangClient:
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

    async def flush(self) -> str | None:
        """Empty its cache, which only an idle server does; what it says otherwise. Raises LostRequestError."""
        status, said = await self._request("POST", "/flush_cache", HEALTH_TIMEOUT_S)
        return None if status == 200 else f"{status} {_message(said)}"

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
        with self._checking():
            return replies.read(kind, said)

    async def generate(self, tokens: Sequence[int], sampling: dict) -> Answer:
        """Sample one response; `sampling` are SGLang's sampling_params."""
        body = {"input_ids": list(tokens), "sampling_params": sampling, "return_logprob": True, "logprob_start_len": -1}
        reply = await self.post_for(replies.Sampled, "/generate", body)
        about = reply.meta_info
        finish = about.finish_reason
        if finish.type == "abort" and finish.status_code == 400:
            raise RefusedError(f"{self.url} refused a prompt of {len(tokens)} tokens: {finish.message}")
        if finish.type == "abort" and not 0 < len(reply.output_ids) == len(about.output_token_logprobs):
            raise LostRequestError(f"{self.url} gave a request up: {finish.message}")
        with self._checking():
            logprobs = replies.sampled_logprobs(reply, sampling.get("max_new_tokens"), self.vocab_size)
        version = about.weight_versions[0].version if about.weight_versions else about.weight_version
        return Answer(reply.output_ids, logprobs.tolist(), finish.type, str(version))

    async def score_by_ours(self, asked: dict) -> np.ndarray:
        """As score, of a scorer of our own, at the temperature that `asked`, the body, names."""
        reply = await self.post_for(replies.Logprobs, "/score", asked)
        with self._checking():
            return replies.given_logprobs(reply, len(asked["response_tokens"]))

    async def support_by_ours(self, asked: dict) -> np.ndarray:
        """As score_by_ours, of the `ids` [response, k] that `asked` names."""
        reply = await self.post_for(replies.LogprobRows, "/support", asked)
        with self._checking():
            return replies.given_rows(reply, len(asked["ids"]), len(asked["ids"][0]))

    async def score(self, prompt: Sequence[int], response: Sequence[int] | np.ndarray) -> np.ndarray:
        """Log-prob of every response token at temperature 1: [response] float32, nats."""
        return (await self.score_top(prompt, response, 0)).logprobs

    async def score_top(self, prompt: Sequence[int], response: Sequence[int] | np.ndarray, top_k: int) -> Scored:
        """As score, and the log-probs of the `top_k` tokens most likely in each place.

        A long response is asked for in pieces, each of which finds what comes before it in the server's cache.
        """
        response, pieces = np.asarray(response).tolist(), []  # JSON knows no array
        for first in range(0, len(response), SCORED_AT_A_TIME):
            piece = response[first : first + SCORED_AT_A_TIME]
            pieces.append(await self._score_piece([*prompt, *response[:first]], piece, top_k))
        return Scored(*map(np.concatenate, zip(*pieces, strict=True)))

    async def _score_piece(self, before: Sequence[int], piece: Sequence[int], top_k: int) -> Scored:
        # from one position before the piece, which predicts its first token; from 0 on, nothing could be taken from
        # the cache, and every token before it would cost a row of the vocabulary's size
        body = {
            "input_ids": [*before, *piece],
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": len(before) - 1,
        }
        if top_k:
            flat = {"return_flat_raw_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}
            body |= {"top_logprobs_num": top_k} | flat
        most = MOST_BYTES + BYTES_OF_TOP * top_k * len(piece)
        about = (await self.post_for(replies.Scored, "/generate", body, most)).meta_info
        if about.finish_reason.type == "abort":
            raise LostRequestError(f"{self.url} gave a request up: {about.finish_reason.message}")
        with self._checking():
            given = replies.scored_logprobs(about.input_token_logprobs[1:], piece, self.vocab_size)
            return Scored(given, *top_logprobs(about.model_extra, len(piece), top_k, self.vocab_size))

    @contextlib.contextmanager
    def _checking(self) -> Iterator[None]:
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
            raise LostRequestError(f"{self.url}{path} answered {_message(said)!r}, which is not JSON") from None

    async def _good(self, method: str, path: str, timeout: float | None, most: int = MOST_BYTES, **body) -> bytes:
        status, said = await self._request(method, path, timeout, most, **body)
        if status in (408, 429) or status >= 500:
            raise LostRequestError(f"{self.url}{path} answered {status}: {_message(said)}")
        if 300 <= status < 400:
            raise RefusedError(f"{self.url}{path} answered {status}: that leads elsewhere, and is not followed")
        if status >= 400:
            refused = UnknownPathError if status == 404 else RefusedError
            raise refused(f"{self.url}{path} answered {status}: {_message(said)}")
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


def _message(said: bytes) -> str:
    """What a server says of a failure, in one line."""
    try:
        told = json.loads(said)
        told = told.get("error", told.get("message", told)) if isinstance(told, dict) else told
        told = told.get("message", told) if isinstance(told, dict) else told
    except (ValueError, RecursionError):
        told = said.decode(errors="replace")
    return " ".join(str(told).split())[:300]
