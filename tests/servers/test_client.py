"""What comes back from a real server, against transformers."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest

from megatron_gopd.servers import client as clients
from tests.chat_models import prompt_tokens
from tests.servers.real_server import load
from tests.tiny_models import load_plain

PROMPT = prompt_tokens("What is 1 plus 2?")
SAMPLING = {"max_new_tokens": 20, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(sglang_server, chat_models) -> str:
    load(sglang_server, chat_models["student"])
    return sglang_server


@pytest.fixture(scope="module")
def plain(chat_models):
    return load_plain(chat_models["student"])


def ask(url: str, request):
    async def once():
        client = clients.SGLangClient(url, vocab_size=296)
        try:
            return await request(client)
        finally:
            await client.close()

    return asyncio.run(once())


def logprobs_of(plain, prompt: list[int], response: list[int], temperature: float = 1.0) -> np.ndarray:
    import torch

    law = law_of(plain, prompt, response, temperature)
    return law.gather(1, torch.tensor(response)[:, None])[:, 0].numpy()


def law_of(plain, prompt: list[int], response: list[int], temperature: float = 1.0):
    """[response, vocabulary] log-probs."""
    import torch

    with torch.no_grad():
        logits = plain(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(server, plain, temperature):
    answer = ask(server, lambda client: client.generate(PROMPT, SAMPLING | {"temperature": temperature}))
    assert len(answer.tokens) == 20
    np.testing.assert_allclose(
        answer.logprobs, logprobs_of(plain, PROMPT, answer.tokens, temperature), rtol=0, atol=2e-5
    )


def test_a_stop_id_ends_a_response_and_is_part_of_it(server):
    stops = [*range(3), *range(100, 296)]  # the special tokens, which end a response anyway, and most of the others
    answer = ask(server, lambda client: client.generate(PROMPT, {"max_new_tokens": 20, "stop_token_ids": stops}))
    assert answer.finish == "stop"
    assert [token in stops for token in answer.tokens] == [False] * (len(answer.tokens) - 1) + [True]


def test_given_tokens_are_scored_from_the_first_on(server, plain):
    response = [5, 295, 7, 7, 0, 295]  # 295: the last of the vocabulary, whose id comes back as 0
    scored = ask(server, lambda client: client.score(PROMPT, response))
    np.testing.assert_allclose(scored, logprobs_of(plain, PROMPT, response), rtol=0, atol=2e-5)


def test_a_long_response_is_scored_in_pieces(server, monkeypatch):
    response = list(range(3, 60))
    whole = ask(server, lambda client: client.score(PROMPT, response))
    monkeypatch.setattr(clients, "SCORED_AT_A_TIME", 10)
    pieces = ask(server, lambda client: client.score(PROMPT, response))
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-5)


@pytest.fixture(params=["flat", "nested"])
def form(request, monkeypatch):
    """Of the most likely tokens: servers that do not know the flat one take no notice of what asks for it."""
    post = clients.SGLangClient.post_for

    def without(self, kind, path, body, most):
        return post(self, kind, path, {key: value for key, value in body.items() if "flat" not in key}, most)

    if request.param == "nested":
        monkeypatch.setattr(clients.SGLangClient, "post_for", without)


def test_the_most_likely_tokens_come_with_their_logprobs(server, plain, monkeypatch, form):
    monkeypatch.setattr(clients, "SCORED_AT_A_TIME", 4)
    response = [5, 295, 7, 7, 0, 295]
    scored = ask(server, lambda client: client.score_top(PROMPT, response, 5))
    expected = law_of(plain, PROMPT, response).topk(5)
    assert scored.top_ids.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(scored.top_logprobs, expected.values, rtol=0, atol=2e-5)
    np.testing.assert_allclose(scored.logprobs, logprobs_of(plain, PROMPT, response), rtol=0, atol=2e-5)


def test_the_last_of_the_vocabulary_is_named_by_its_own_id_among_the_most_likely(server):
    scored = ask(server, lambda client: client.score_top(PROMPT, [5, 7], 296))
    assert [sorted(row) for row in scored.top_ids.tolist()] == [list(range(296))] * 2


def test_a_prompt_that_is_too_long_is_refused_in_the_server_s_words(server):
    with pytest.raises(clients.RefusedError, match="longer than the model's context length"):
        ask(server, lambda client: client.generate([1] * 70000, SAMPLING))


def test_nobody_there_is_a_lost_request():
    with pytest.raises(clients.LostRequestError, match="ClientConnectorError"):
        ask("http://127.0.0.1:9", lambda client: client.generate(PROMPT, SAMPLING))


def test_a_server_that_was_given_up_meanwhile_is_a_lost_request():
    """Its client is closed by whoever starts it anew, while an update still holds it."""

    async def late(client):
        with contextlib.suppress(clients.LostRequestError):
            await client.get("/server_info")
        await client.close()
        await client.get("/server_info")

    with pytest.raises(clients.LostRequestError, match="given up meanwhile"):
        ask("http://127.0.0.1:9", late)


def test_an_address_that_cannot_be_is_a_lost_request():
    with pytest.raises(clients.LostRequestError, match=r"http://node7\.\.cluster:30000/generate: Unicode"):
        ask("http://node7..cluster:30000", lambda client: client.generate(PROMPT, SAMPLING))
