"""The HTTP front of our scorer, without a model behind it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from pydantic import ValidationError

from megatron_gopd.errors import UserError
from megatron_gopd.servers import patience, scorer_service
from megatron_gopd.servers.scorer_service import ScorerService


def test_an_empty_token_is_none():
    with pytest.raises(UserError, match="--host 0.0.0.0 lets other machines in; set .* MEGATRON_GOPD_TOKEN"):
        ScorerService("0.0.0.0", 0, about={}, vocab_size=1, token="")


def test_a_service_ends_while_rows_wait():
    service = ScorerService("127.0.0.1", 0, about={}, vocab_size=10, token=None)
    body = {"prompt_tokens": [1], "response_tokens": [2]}
    with ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{service.port}/score"
        reply = pool.submit(httpx.post, url, json=body, timeout=60, trust_env=False)
        service.waiting.get(timeout=60)
        closing = threading.Thread(target=service.close, daemon=True)
        closing.start()
        assert reply.result(60).status_code == 503
        closing.join(60)
        assert not closing.is_alive()


def test_hidden_states_that_are_not_finite_are_refused():
    states = torch.ones(3, 4)
    states[1, 2] = torch.nan
    reply = ask_for_states({"fingerprint": "f"}, states)
    assert (reply.status_code, reply.json()["error"]["message"]) == (
        422,
        "the hidden state of response token 1 is not finite",
    )


def test_hidden_states_of_a_megatron_checkpoint_are_refused():
    reply = ask_for_states({"fingerprint": None, "model_path": "here"}, None)
    assert reply.status_code == 400
    assert "here is a Megatron checkpoint" in reply.json()["error"]["message"]


@pytest.fixture
def service():
    service = ScorerService("127.0.0.1", 0, about={"of": "a model"}, vocab_size=10, token=None)
    yield service
    service.close()


def post(service: ScorerService, body: bytes | str, **headers) -> httpx.Response:
    url = f"http://127.0.0.1:{service.port}/score"
    return httpx.post(url, content=body, headers=headers, timeout=60, trust_env=False)


def healthy(service: ScorerService) -> bool:
    return httpx.get(f"http://127.0.0.1:{service.port}/health", timeout=10, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ('"temperature": 1e999', "temperature: .*finite"),
        ('"temperature": NaN', "temperature"),
        ('"temperature": Infinity', "temperature"),
        ('"temperature": 0', "temperature: .*greater than 0"),
        ('"temperature": true', "temperature: .*number"),
        ('"temperature": "1.0"', "temperature: .*number"),
        ('"temperature": null', "temperature: .*number"),
        ('"prompt_tokens": [1, 2.0]', r"prompt_tokens\.1: .*integer"),
        ('"prompt_tokens": [true]', r"prompt_tokens\.0: .*integer"),
        ('"prompt_tokens": ["1"]', r"prompt_tokens\.0: .*integer"),
        ('"prompt_tokens": [-1]', r"prompt_tokens\.0: .*greater than or equal to 0"),
        ('"prompt_tokens": [2147483648]', r"prompt_tokens\.0: .*less than"),
        ('"prompt_tokens": [1e99]', r"prompt_tokens\.0"),
        ('"prompt_tokens": [10]', "token id 10 is outside the model's vocabulary of 10"),
        ('"prompt_tokens": []', "prompt_tokens"),
        ('"prompt_tokens": {"0": 1}', "prompt_tokens: .*array"),
        ('"prompt_tokens": null', "prompt_tokens: .*array"),
        ('"more": 1', "more: .*not permitted"),
    ],
)
def test_a_request_of_other_types_or_numbers_is_refused(service, changes, told):
    given = {"prompt_tokens": "[1]", "response_tokens": "[2]"}
    given = {key: value for key, value in given.items() if f'"{key}"' not in changes}
    body = "{" + ", ".join([*(f'"{key}": {value}' for key, value in given.items()), changes]) + "}"
    reply = post(service, body)
    assert reply.status_code == 400
    assert re.search(told, reply.json()["error"]["message"]), reply.text
    assert service.waiting.empty()


@pytest.mark.parametrize("body", ["", "nonsense", "[]", "1", "[" * 100_000, b"\xff"])
def test_a_request_that_is_no_object_is_refused(service, body):
    assert post(service, body).status_code == 400
    assert service.waiting.empty() and healthy(service)


@pytest.mark.parametrize(
    "body", ['{"prompt_tokens": [' + "{}," * 10**5 + "{}]}", "{" + ",".join(f'"{n}":1' for n in range(10**5)) + "}"]
)
def test_a_request_that_is_wrong_in_many_places_takes_no_more_memory_than_it_is_long(body):
    with pytest.raises(ValidationError) as refused:
        scorer_service.AskedLogprobs.model_validate_json(body)
    assert refused.value.error_count() < 4


def test_a_request_is_read_no_further_than_it_may_be_long(service, monkeypatch):
    monkeypatch.setattr(patience, "MOST_BYTES", 1000)
    assert post(service, b" " * 1001).status_code == 413
    assert post(service, iter([b" " * 500] * 3)).status_code == 413  # whose length is not told
    assert healthy(service)


def half_sent(service: ScorerService, said: bytes) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    opened.sendall(said)
    return opened


HEADERS, BODY = b"POST /score HTTP/1.1\r\nHost: ", b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"


@pytest.mark.parametrize("said", [b"", HEADERS, BODY], ids=["nothing", "half of the headers", "half of the body"])
def test_a_request_that_is_not_whole_in_time_ends_its_connection(service, monkeypatch, said):
    monkeypatch.setattr(patience, "REQUEST_S", 0.5)
    with half_sent(service, said) as opened, contextlib.suppress(ConnectionResetError):
        assert opened.recv(1000) == b""


def test_a_second_request_of_a_connection_has_no_longer_time(service, monkeypatch):
    monkeypatch.setattr(patience, "REQUEST_S", 1.0)
    with half_sent(service, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n") as opened:
        assert opened.recv(1000).startswith(b"HTTP/1.1 200")
        opened.sendall(BODY)
        with contextlib.suppress(ConnectionResetError):
            assert opened.recv(1000) == b""


@pytest.mark.parametrize("said", [HEADERS, BODY], ids=["headers", "body"])
def test_many_requests_that_are_half_sent_stop_no_other(service, monkeypatch, said):
    monkeypatch.setattr(patience, "MOST_CONNECTIONS", 20)
    monkeypatch.setattr(patience, "REQUEST_S", 600.0)
    with contextlib.ExitStack() as held:
        oldest, *_ = [held.enter_context(half_sent(service, said)) for _ in range(60)]
        assert healthy(service)
        with contextlib.suppress(ConnectionResetError):
            assert oldest.recv(1) == b""
        body = '{"prompt_tokens": [1], "response_tokens": [2]}'
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(post, service, body)
            waiting = service.waiting.get(timeout=60)
            for _ in range(60):  # while it is computed
                held.enter_context(half_sent(service, said))
            assert healthy(service)
            waiting.answer.set_result(np.float32([-1.0]))
            assert reply.result(60).json() == {"logprobs": [-1.0]}


def test_it_listens_when_it_is_there(monkeypatch):
    startup = uvicorn.Server.startup

    async def late(self, sockets=None):
        await asyncio.sleep(0.5)
        await startup(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "startup", late)
    service = ScorerService("127.0.0.1", 0, about={}, vocab_size=10, token=None)
    half_sent(service, b"").close()  # is refused where nobody listens
    service.close()


def ask_for_states(about: dict, states: torch.Tensor | None) -> httpx.Response:
    """What a service of `about` replies when the model gives `states`; None: it is not asked."""
    service = ScorerService("127.0.0.1", 0, about=about, vocab_size=10, token=None)
    body = {"prompt_tokens": [1], "response_tokens": [2, 3, 4]}
    with ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{service.port}/hidden"
        reply = pool.submit(httpx.post, url, json=body, timeout=60, trust_env=False)
        if states is not None:
            service.waiting.get(timeout=60).answer.set_result(states)
        found = reply.result(60)
    service.close()
    return found
