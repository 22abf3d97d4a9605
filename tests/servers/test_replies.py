"""Replies of servers that are wrong, broken or hostile: none is computed with."""

from __future__ import annotations

import asyncio
import gzip

import numpy as np
import pytest

from megatron_gopd.servers import client as clients
from tests.servers.stub import stub

VOCABULARY = 100
LENGTH = {"type": "length"}


def asked(reply, request, **headers):
    """What `request` of a client gets from a server that always replies `reply`, or does reply(path, body)."""

    async def once(url: str):
        client = clients.SGLangClient(url, "a secret", VOCABULARY)
        try:
            return await request(client)
        finally:
            await client.close()

    with stub(reply if callable(reply) else lambda path, body: reply, **headers) as url:
        return asyncio.run(once(url))


def generated(reply, **headers):
    return asked(reply, lambda client: client.generate([1, 2], {"max_new_tokens": 3}), **headers)


def scored(reply):
    return asked(reply, lambda client: client.score([1, 2], [3, 4, 99]))


def of_sampled(entries: list, ids: list | None = None, **about) -> dict:
    ids = [entry[1] for entry in entries] if ids is None else ids
    return {"output_ids": ids, "meta_info": {"finish_reason": LENGTH, "output_token_logprobs": entries} | about}


def of_scored(*entries) -> dict:
    return {"meta_info": {"finish_reason": LENGTH, "input_token_logprobs": [[None, 2, None], *entries]}}


def test_a_reply_as_it_should_be():
    answer = generated(of_sampled([[-0.5, 5, None], [None, 99, None]]))
    assert (answer.tokens, answer.finish) == ([5, 99], "length")
    np.testing.assert_array_equal(answer.logprobs, [-0.5, np.nan])  # whose row the engine tells


def of_weights(*spans: tuple) -> dict:
    """A reply of three tokens."""
    told = [dict(zip(("version", "start", "end"), span, strict=True)) for span in spans]
    reply = of_sampled([[-1.0, 5, None]] * 3)
    return reply | {"meta_info": reply["meta_info"] | {"weight_version": "9", "weight_versions": told}}


def test_every_token_has_its_weights():
    assert generated(of_weights(("7", 0, 1), ("8", 1, 3))).versions == [("7", 1), ("8", 2)]
    assert generated(of_weights()).versions == [("9", 3)]


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (of_weights(("7", 0, 2)), "weights of 2 tokens, of a response of 3"),
        (of_weights(("7", 0, 2), ("8", 2, 4)), "weights of 4 tokens, of a response of 3"),
        (of_weights(("7", 0, 4), ("8", 2, 3)), "weights '8' of tokens 4 to 3"),
        (of_sampled([[50.0, 5, None]]), "log-prob 50 in place 0: no probability is above 1"),
        (of_sampled([[-1.0, 5, None], [0.01, 5, None]]), "log-prob 0.01 in place 1"),
        (of_sampled([[-1.0, 100, None]]), "token id 100 in place 0, outside the vocabulary of 100"),
        (of_sampled([[-1.0, -1, None]]), "token id -1 in place 0, outside the vocabulary"),
        (of_sampled([[-1.0, 2**70, None]]), "1180591620717411303424"),
        (of_sampled([[-1.0, 5, None]] * 4), "4 tokens, where 1 to 3 were asked for"),
        (of_sampled([]), "0 tokens, where 1 to 3 were asked for"),
        (of_sampled([[-1.0, 5, None]], [6]), "log-probs of 1 tokens that are not the response's 1"),
        (of_sampled([[-1.0, 5, None]], [5, 5]), "log-probs of 1 tokens that are not the response's 2"),
        (of_sampled([["-1.0", 5, None]]), r"meta_info\.output_token_logprobs\.0\.0 = '-1\.0': .*number"),
        (of_sampled([[True, 5, None]]), r"output_token_logprobs\.0\.0 = True: .*number"),
        (of_sampled([[-1.0, 5.5, None]], [5]), r"output_token_logprobs\.0\.1 = 5\.5: .*integer"),
        (of_sampled([[-1.0, True, None]], [1]), r"output_token_logprobs\.0\.1 = True: .*integer"),
        (of_sampled([[-1.0, 5]]), r"output_token_logprobs\.0\.2"),
        (of_sampled([[-1.0, 5, None]], {"5": 5}), "output_ids = "),
        (of_sampled([[-1.0, 5, None]], finish_reason=None), "meta_info.finish_reason = None"),
        (of_sampled([[-1.0, 5, None]], finish_reason={"type": 7}), "meta_info.finish_reason.type = 7"),
        ({"output_ids": [5]}, "meta_info"),
        ([1, 2], r"a reply = \[1, 2\]"),
        (None, "a reply = None"),
    ],
)
def test_a_response_that_no_model_can_have_given_is_refused(reply, told):
    with pytest.raises(clients.RefusedError, match=rf"http://127\.0\.0\.1:\d+ gave .*{told}"):
        generated(reply)


@pytest.mark.parametrize("reply", [b"", b"nonsense", b"\xff\xfe", b'{"output_ids": [1', b"[" * 100_000, b"1" * 5000])
def test_what_is_not_json_may_be_asked_again(reply):
    with pytest.raises((clients.LostRequestError, clients.RefusedError)):
        generated(reply)


def test_given_tokens_as_they_should_be():
    """99, the last of the vocabulary, comes back as 0."""
    np.testing.assert_array_equal(
        scored(of_scored([-1.0, 3, None], [1e-6, 4, None], [-3.0, 0, None])), np.float32([-1.0, 1e-6, -3.0])
    )


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([[50.0, 3], [-2.0, 4], [-3.0, 99]], "log-prob 50 in place 0"),
        ([[-1.0, 3], [-2.0, 5], [-3.0, 99]], "the log-prob of token id 5 in place 1, where 4 was asked about"),
        ([[-1.0, 0], [-2.0, 4], [-3.0, 99]], "the log-prob of token id 0 in place 0, where 3 was asked about"),
        ([[-1.0, 3], [-2.0, 4]], "2 log-probs for 3 tokens"),
        ([[-1.0, 3], [-2.0, 4], [-3.0, 99], [-3.0, 99]], "4 log-probs for 3 tokens"),
        ([[-1.0, 3], [None, 4], [-3.0, 99]], "2 log-probs for 3 tokens"),
        ([[-1.0, 3], [float("nan"), 4], [-3.0, 99]], "log-prob nan in place 1"),
        ([[-1.0, 3], [float("-inf"), 4], [-3.0, 99]], "log-prob -inf in place 1"),
        ([[-1.0, 3], [-1e300, 4], [-3.0, 99]], "log-prob -inf in place 1"),
    ],
)
def test_log_probs_that_are_not_of_the_tokens_asked_about_are_refused(entries, told):
    with pytest.raises(clients.RefusedError, match=rf"http://127\.0\.0\.1:\d+ gave .*{told}"):
        scored(of_scored(*([*entry, None] for entry in entries)))


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"logprobs": [50.0, -1.0]}, "log-prob 50 in place 0"),
        ({"logprobs": [-1.0]}, "1 log-probs for 2 tokens"),
        ({"logprobs": [-1.0, None]}, r"logprobs\.1 = None"),
        ({"logprobs": [-1.0, "-1"]}, r"logprobs\.1 = '-1'"),
        ({"logprobs": [[-1.0, -1.0]]}, r"logprobs\.0 = \[-1\.0, -1\.0\]"),
        ({"logprobs": [-1.0, float("inf")]}, "log-prob inf in place 1"),
        ({"logprobs": "-1.0"}, "logprobs = '-1.0'"),
        ({}, "logprobs"),
    ],
)
def test_our_scorer_s_numbers_are_checked_in_the_same_way(reply, told):
    with pytest.raises(clients.RefusedError, match=f"gave .*{told}"):
        asked(reply, lambda client: client.score_by_ours({"response_tokens": [1, 2]}))


def test_a_reply_that_unpacks_to_gigabytes_is_not_unpacked():
    zeros = gzip.compress(bytes(10**7))
    with pytest.raises(clients.RefusedError, match="answered in gzip, which was not asked for"):
        generated(zeros, Content_Encoding="gzip")


def test_a_reply_is_read_no_further_than_it_may_be_long(monkeypatch):
    monkeypatch.setattr(clients.SGLangClient.post_for, "__defaults__", (10_000, None))
    with pytest.raises(clients.RefusedError, match="answered with more than 10000 bytes"):
        generated(b" " * 10_001)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status):
    """Prompts, and the token, would go to another host."""
    taken = []
    with stub(lambda path, body: taken.append(body) or {}) as elsewhere:
        with pytest.raises(clients.RefusedError, match=f"answered {status}: that leads elsewhere, and is not followed"):
            generated(status, Location=f"{elsewhere}/generate")
        assert not asked(status, lambda client: client.healthy(), Location=f"{elsewhere}/health")
    assert not taken


@pytest.mark.parametrize("reply", [[], 3.5, "text", None])
def test_what_a_server_says_of_itself_is_an_object(reply):
    with pytest.raises(clients.RefusedError, match="/server_info answered a .*, not an object"):
        asked(reply, lambda client: client.get("/server_info"))


@pytest.mark.parametrize("reply", [{}, {"ranks": []}, {"ranks": [3]}, {"ranks": [{"checksums": {"a": 3}}]}])
def test_checksums_of_other_shapes_are_refused(reply):
    from megatron_gopd.servers.fingerprints import checksums_of

    with pytest.raises(clients.RefusedError, match="ranks"):
        asked(reply, lambda client: checksums_of(client, 30))
