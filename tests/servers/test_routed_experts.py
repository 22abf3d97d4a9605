"""What servers tell of their experts, and refusals of what no router can have chosen."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from megatron_gopd.servers.http_client import RefusedError
from megatron_gopd.servers.routed_experts import FLAG, Routers
from tests.servers.real_server import real_server
from tests.servers.test_client import ask
from tests.servers.test_replies import asked, of_sampled

ROUTERS = Routers(layers=3, top_k=2, experts=8)
CHOSEN = np.random.default_rng(0).random((6, 3, 8)).argsort(-1)[..., :2]


def told(chosen: np.ndarray) -> str:
    return base64.b64encode(chosen.astype("<i4").tobytes()).decode()


def changed(place: tuple, value: int) -> str:
    chosen = CHOSEN.copy()
    chosen[place] = value
    return told(chosen)


def test_choices_are_read_as_they_were_made():
    read = ROUTERS.read(told(CHOSEN), 6)
    np.testing.assert_array_equal(read, CHOSEN)
    assert read.dtype == np.uint8


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        (None, f"start that server with --{FLAG}"),
        (told(CHOSEN[:5]), "120 bytes of routed_experts for 6 positions of 3 layers with 2 experts each"),
        (changed((4, 1, 0), 8), "expert 8 of 8 in position 4, layer 1"),
        (changed((4, 1, 0), -1), "expert -1 of 8 in position 4, layer 1"),
        (changed((4, 1), 0), "an expert twice in position 4, layer 1"),
        ("nonsense", "bytes of routed_experts"),
        ("n", "base64|padding"),
    ],
)
def test_what_no_router_chooses_is_refused(said, refusal):
    with pytest.raises(ValueError, match=refusal):
        ROUTERS.read(said, 6)


def test_a_request_asks_from_the_first_position_that_is_not_known():
    """Of two prompt tokens and two of the response, the last of which is no position: positions 1 and 2."""
    bodies = []

    def reply(path, body):
        bodies.append(body)
        return of_sampled([[-1.0, 5, None], [-1.0, 6, None]], routed_experts=told(CHOSEN[:2]))

    answer = asked(reply, lambda client: client.generate([1, 2], {"max_new_tokens": 3}, ROUTERS, first=1))
    assert (bodies[0]["return_routed_experts"], bodies[0]["routed_experts_start_len"]) == (True, 1)
    np.testing.assert_array_equal(answer.routed_experts, CHOSEN[:2])


def test_a_response_that_was_cut_short_need_not_tell():
    cut = of_sampled([[-1.0, 5, None]], finish_reason={"type": "abort"})
    assert asked(cut, lambda client: client.generate([1, 2], {"max_new_tokens": 3}, ROUTERS)).routed_experts is None


def test_a_server_that_was_not_started_for_it_is_refused(sglang_server):
    """It answers 200, without them."""
    with pytest.raises(RefusedError, match=f"{sglang_server} gave no experts .* start that server with --{FLAG}"):
        ask(sglang_server, lambda client: client.generate([1, 2], {"max_new_tokens": 2}, ROUTERS))


@pytest.mark.slow
def test_they_are_those_of_the_same_weights_in_transformers_with_a_cached_prompt_too(tmp_path):
    import torch

    from tests.tiny_models import load_plain, save_tiny

    folder, routers = save_tiny(tmp_path, "qwen3moe-untied"), Routers(layers=4, top_k=2, experts=8)
    prompt = list(range(1, 40))
    with real_server(folder, tmp_path / "server.log", {FLAG: True}) as url:
        answers = [ask(url, lambda client: client.generate(prompt, {"max_new_tokens": 9}, routers)) for _ in "12"]
    for answer in answers:
        tokens = torch.tensor([[*prompt, *answer.tokens[:-1]]])
        logits = load_plain(folder)(tokens, output_router_logits=True).router_logits  # of every layer [tokens, experts]
        expected = torch.stack([each.topk(2).indices for each in logits], dim=1)
        np.testing.assert_array_equal(answer.routed_experts, expected.numpy())
