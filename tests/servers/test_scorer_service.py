"""The HTTP front of our scorer, without a model behind it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from megatron_gopd.errors import UserError
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
