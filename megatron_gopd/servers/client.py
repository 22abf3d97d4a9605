"""HTTP to one SGLang server. Source of the API: sglang/srt/entrypoints/http_server.py, 0.5.23."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from megatron_gopd.servers.top_logprobs import Scored, top_logprobs

SCORED_AT_A_TIME = 4096  # response tokens of one request
IDLE_S = 3.0  # of a connection: SGLang and uvicorn close it after 5, and a request just then would be lost
HEALTH_TIMEOUT_S = 30.0  # SGLang's own health check gives up after 20


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

    def __init__(self, url: str, token: str | None = None):
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None  # of the event loop that asks first

    async def close(self) -> None:
        if self._session:
            await self._session.close()

    async def healthy(self) -> bool:
        """Whether the server answers: SGLang generates a token for it, unless it is at work anyway."""
        try:
            return (await self._request("GET", "/health", HEALTH_TIMEOUT_S))[0] == 200
        except LostRequestError:
            return False

    async def flush(self) -> str | None:
        """Empty its cache, which only an idle server does; what it says otherwise. Raises LostRequestError."""
        status, said = await self._request("POST", "/flush_cache", HEALTH_TIMEOUT_S)
        return None if status == 200 else f"{status} {_message(said)}"

    async def get(self, path: str, timeout: float = HEALTH_TIMEOUT_S) -> dict:
        return await self._ask("GET", path, timeout)

    async def post(self, path: str, body: dict, timeout: float | None = None) -> dict | list:
        """`timeout` in seconds; None: as long as it takes."""
        return await self._ask("POST", path, timeout, json=body)

    async def post_for_bytes(self, path: str, body: dict) -> bytes:
        """As post, for an answer that is no JSON."""
        return await self._good("POST", path, None, json=body)

    async def generate(self, tokens: Sequence[int], sampling: dict) -> Answer:
        """Sample one response; `sampling` are SGLang's sampling_params."""
        reply = await self.post(
            "/generate",
            {"input_ids": list(tokens), "sampling_params": sampling, "return_logprob": True, "logprob_start_len": -1},
        )
        about = reply["meta_info"]
        finish = about["finish_reason"]
        if finish["type"] == "abort" and finish.get("status_code") == 400:
            raise RefusedError(f"{self.url} refused a prompt of {len(tokens)} tokens: {finish.get('message')}")
        rows, ids = about["output_token_logprobs"], reply["output_ids"]
        if [row[1] for row in rows] != ids:
            raise LostRequestError(f"{self.url} sent log-probs of other tokens than the response's")
        versions = about.get("weight_versions") or [{"version": about["weight_version"]}]
        if finish["type"] == "abort" and not ids:
            raise LostRequestError(f"{self.url} gave a request up: {finish.get('message')}")
        logprobs = [math.nan if row[0] is None else row[0] for row in rows]  # JSON has no NaN
        return Answer(ids, logprobs, finish["type"], str(versions[0]["version"]))

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
        about = (await self.post("/generate", body))["meta_info"]
        finish = about["finish_reason"]
        if finish["type"] == "abort":
            raise LostRequestError(f"{self.url} gave a request up: {finish.get('message')}")
        given = [row[0] for row in about["input_token_logprobs"][1:]]
        if len(given) != len(piece) or None in given:
            raise RefusedError(
                f"{self.url} gave {len(given) - given.count(None)} log-probs for {len(piece)} tokens after "
                f"{len(before)} others; none can be made up"
            )
        try:
            top = top_logprobs(about, len(piece), top_k)
        except ValueError as error:
            raise RefusedError(f"{self.url} gave {error}") from None
        return Scored(np.array(given, dtype=np.float32), *top)

    async def _ask(self, method: str, path: str, timeout: float | None, **body) -> dict | list:
        said = await self._good(method, path, timeout, **body)
        try:
            return json.loads(said)
        except ValueError:
            raise LostRequestError(f"{self.url}{path} answered {_message(said)!r}, which is not JSON") from None

    async def _good(self, method: str, path: str, timeout: float | None, **body) -> bytes:
        status, said = await self._request(method, path, timeout, **body)
        if status in (408, 429) or status >= 500:
            raise LostRequestError(f"{self.url}{path} answered {status}: {_message(said)}")
        if status >= 400:
            refused = UnknownPathError if status == 404 else RefusedError
            raise refused(f"{self.url}{path} answered {status}: {_message(said)}")
        return said

    async def _request(self, method: str, path: str, timeout: float | None, **body) -> tuple[int, bytes]:
        """Status and content of an answer, through no proxy of the environment: that is not meant for these servers."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
            self._session = aiohttp.ClientSession(headers=self._headers, connector=connector)
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=10)
        try:
            async with self._session.request(method, f"{self.url}{path}", timeout=limits, **body) as reply:
                return reply.status, await reply.read()
        except (aiohttp.ClientError, UnicodeError, TimeoutError) as error:  # UnicodeError: of a host that cannot be
            raise LostRequestError(f"{self.url}{path}: {type(error).__name__} {error}".rstrip()) from None
        except RuntimeError:  # aiohttp's word for a session that close() has ended: the server is started anew
            if not self._session.closed:
                raise
            raise LostRequestError(f"{self.url}{path}: the server was given up meanwhile") from None


def _message(said: bytes) -> str:
    """What a server says of a failure, in one line."""
    try:
        told = json.loads(said)
        told = told.get("error", told.get("message", told)) if isinstance(told, dict) else told
        told = told.get("message", told) if isinstance(told, dict) else told
    except ValueError:
        told = said.decode(errors="replace")
    return " ".join(str(told).split())[:300]
