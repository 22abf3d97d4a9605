"""Log-probs and hidden states over HTTP: the front of `megatron-gopd serve-scorer`. It knows no model; rows wait in a
queue for one.

POST /score {"prompt_tokens": [...], "response_tokens": [...], "temperature": 1.0} -> {"logprobs": [...]}
POST /support {..., "ids": [[...], ...], "temperature": 1.0}                       -> {"logprobs": [[...], ...]}
POST /hidden {"prompt_tokens": [...], "response_tokens": [...]}                     -> servers/wire.py
GET  /model_info                                                                    -> what is served
GET  /health
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from megatron_gopd.errors import UserError
from megatron_gopd.servers import wire
from megatron_gopd.servers.patience import MOST_BYTES, BoundedProtocol, TooLongError, allow_connections, body_of
from megatron_gopd.servers.replies import Many
from megatron_gopd.servers.top_logprobs import NOBODY

LOOK_S = 0.01
Tokens = Many[Annotated[int, Field(ge=0, lt=2**31)]]


class AskedStates(BaseModel):
    """The body of a request for hidden states."""

    model_config = ConfigDict(extra="allow", strict=True)  # "forbid" keeps a kilobyte for every key of five bytes

    prompt_tokens: Tokens = Field(min_length=1)
    response_tokens: Tokens = Field(min_length=1)

    @model_validator(mode="after")
    def _nothing_else(self):
        for name in list(self.model_extra)[:1]:
            raise ValueError(f"{name:.100}: a key that is not permitted")
        return self


class AskedLogprobs(AskedStates):
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)


class AskedSupport(AskedLogprobs):
    """Of every response token as many ids, itself first; NOBODY stands in the place of one."""

    ids: Many[Many[Annotated[int, Field(ge=NOBODY, lt=2**31)]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_every_token(self):
        if [row[:1] for row in self.ids] != [[token] for token in self.response_tokens]:
            raise ValueError("ids: there is not a row for every response token, which begins with that token")
        if len({len(row) for row in self.ids}) > 1:
            raise ValueError("ids: rows are of different lengths")
        return self


@dataclass
class Waiting:
    """A row, and where its log-probs [response] or [response, k], or its hidden states [response, h], go."""

    asked: AskedStates
    answer: Future = field(default_factory=Future)


class ScorerService:
    """Listens in a thread until close(); `waiting` is what to score next."""

    def __init__(self, host: str, port: int, *, about: dict, vocab_size: int, token: str | None):
        """Raises UserError: the port is taken, or the service would be open to others without a token."""
        if not token and host not in ("127.0.0.1", "localhost", "::1"):
            raise UserError(
                f"--host {host} lets other machines in; set the environment variable MEGATRON_GOPD_TOKEN, here and "
                f"for those who ask, or leave --host out"
            )
        self.waiting: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
        self._unanswered: set[Future] = set()
        self._about, self._vocab_size, self._token = about, vocab_size, token or None  # "": a variable that is unset
        routes = [
            Route("/score", self._score, methods=["POST"]),
            Route("/support", self._support, methods=["POST"]),
            Route("/hidden", self._hidden, methods=["POST"]),
            Route("/model_info", self._model_info),
            Route("/health", self._health),
        ]
        allow_connections()
        held = {"http": BoundedProtocol, "ws": "none", "log_level": "warning", "lifespan": "off"}
        settings = uvicorn.Config(Starlette(routes=routes), host=host, port=port, **held)
        self._server = uvicorn.Server(settings)
        try:
            self._socket = settings.bind_socket()
        except SystemExit:  # uvicorn's, after it has logged why
            raise UserError(f"cannot listen on {host}:{port}; choose another --port") from None
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:  # or whoever reads that it serves would be refused
            if not self._thread.is_alive():
                raise UserError(f"the service on {host}:{port} ended as it began; what it said is above")
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Listen no more; who still waits is told that nobody will score."""
        for answer in list(self._unanswered):
            answer.cancel()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    async def _health(self, request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def _model_info(self, request: Request) -> JSONResponse:
        return self._refusal(request) or JSONResponse(self._about)

    async def _score(self, request: Request) -> Response:
        return await self._answer(request, AskedLogprobs, _logprobs)

    async def _support(self, request: Request) -> Response:
        return await self._answer(request, AskedSupport, _logprobs)

    async def _hidden(self, request: Request) -> Response:
        return await self._answer(request, AskedStates, self._states)

    async def _answer(
        self, request: Request, kind: type[AskedStates], reply: Callable[[np.ndarray | torch.Tensor], Response]
    ) -> Response:
        if refusal := self._refusal(request):
            return refusal
        try:
            asked = kind.model_validate_json(await body_of(request))
        except ValidationError as error:
            first = error.errors()[0]
            where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            return _error(400, f"{where}: {what}" if where else what)
        except TooLongError:
            return _error(413, f"a request is at most {MOST_BYTES} bytes long", headers={"Connection": "close"})
        except ClientDisconnect:
            return _error(400, "whoever asked is gone")
        named = (token for row in getattr(asked, "ids", ()) for token in row if token != NOBODY)
        outside = [t for t in (*asked.prompt_tokens, *asked.response_tokens, *named) if not 0 <= t < self._vocab_size]
        if outside:
            return _error(400, f"token id {outside[0]} is outside the model's vocabulary of {self._vocab_size}")
        if kind is AskedStates and not self._about.get("fingerprint"):
            return _error(
                400,
                f"{self._about['model_path']} is a Megatron checkpoint, whose LM head cannot be compared with the "
                f"asker's: convert it, megatron-gopd convert, and serve that",
            )
        waiting = Waiting(asked)
        self._unanswered.add(waiting.answer)
        self.waiting.put(waiting)
        try:
            return await asyncio.to_thread(reply, await asyncio.wrap_future(waiting.answer))
        except asyncio.CancelledError:  # by close()
            return _error(503, "this scorer is ending")
        finally:
            self._unanswered.discard(waiting.answer)

    def _states(self, states: torch.Tensor) -> Response:
        finite = torch.isfinite(states).all(1)
        if not finite.all():  # never a fill value
            return _error(422, f"the hidden state of response token {int(finite.int().argmin())} is not finite")
        return Response(wire.packed(states, self._about["fingerprint"]), media_type="application/octet-stream")

    def _refusal(self, request: Request) -> JSONResponse | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._token is None or secrets.compare_digest(given.encode(), self._token.encode()):
            return None
        return _error(401, "a token is asked for: set MEGATRON_GOPD_TOKEN to the one this scorer was started with")


def _logprobs(logprobs: np.ndarray) -> JSONResponse:
    if not np.isfinite(logprobs).all():  # never a fill value
        place = tuple(np.argwhere(~np.isfinite(logprobs))[0].tolist())
        return _error(422, f"the log-prob of response token {place[0]} is {logprobs[place]}")
    return JSONResponse({"logprobs": logprobs.tolist()})


def _error(status: int, message: str, **kwargs) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status_code=status, **kwargs)
