"""What a GPU replays, called on a CPU: the tokens and log-probs of the cache that grows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tests.tiny_models import VOCABULARY, save_tiny

torch = pytest.importorskip("torch")

TOKENS, TEMPERATURE, STOPS = 40, 0.7, list(range(0, VOCABULARY, 12))
LENGTHS = [3, 11, 1, 7, 7, 20, 2, 5, 9, 4, 6, 13]
MEMORY = 2**30  # bytes
FAMILIES = ["qwen3-tied", "llama-untied", "llama3-tied", "qwen2-tied", "qwen3moe-untied"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    return load(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return load(tmp_path_factory.mktemp("tiny"), "qwen3-tied")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1, VOCABULARY, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def uniforms() -> np.ndarray:
    return np.random.default_rng(1).random((len(LENGTHS), TOKENS))


@pytest.fixture
def small_buckets(monkeypatch):
    """So that rows and tokens pass several of them."""
    from megatron_gopd.data import buckets

    for name, value in {"LEAST_ROWS": 2, "LEAST_TOKENS": 16, "UNIT": 8}.items():
        monkeypatch.setattr(buckets, name, value)


def load(folder, name: str):
    from megatron_gopd.rollout.embedded import load_for_decoding

    return load_for_decoding(save_tiny(folder, name), "float32")


def fixed(model, rows: int = len(LENGTHS), memory: float = MEMORY):
    from megatron_gopd.rollout.fixed_decode import FixedDecoder

    return FixedDecoder(model, rows, memory)


def growing(model, prompts, **keys):
    from megatron_gopd.rollout.sampling import decode

    return decode(model, prompts, **keys)


def asked(**changed) -> dict:
    return {"max_tokens": TOKENS, "stop_ids": STOPS, "temperature": TEMPERATURE} | changed


def same(found, expected) -> None:
    assert [each.tokens.tolist() for each in found] == [each.tokens.tolist() for each in expected]
    assert [each.finished for each in found] == [each.finished for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("greedy", [True, False])
def test_it_decodes_what_the_growing_cache_does(model, prompts, uniforms, small_buckets, greedy):
    keys = asked(uniforms=None if greedy else uniforms)
    expected = growing(model, prompts, **keys)
    assert greedy or len({len(each.tokens) for each in expected}) > 3
    same(fixed(model).decode(prompts, **keys), expected)


def test_few_rows_at_a_time_decode_the_same(qwen3, prompts, uniforms, one_rank, capsys):
    from megatron_gopd.data.buckets import MOST
    from megatron_gopd.rollout.fixed_cache import token_bytes

    memory = 5 * 256 * token_bytes(qwen3.config, 4) / MOST
    keys = asked(uniforms=uniforms)
    same(fixed(qwen3, memory=memory).decode(prompts, **keys), growing(qwen3, prompts, **keys))
    assert "decoding 5 rows at a time, not 12" in capsys.readouterr().out


def test_a_second_decoding_finds_nothing_of_the_first(qwen3, prompts, uniforms, small_buckets):
    decoder, keys = fixed(qwen3), asked(uniforms=uniforms[:4])
    decoder.decode(prompts, **asked(uniforms=uniforms))
    same(decoder.decode(prompts[:4], **keys), growing(qwen3, prompts[:4], **keys))


def test_a_bucket_is_captured_once_and_replayed_at_every_later_use(qwen3, prompts, uniforms, small_buckets):
    decoder, keys = fixed(qwen3), asked(uniforms=uniforms, stop_ids=[])
    decoder.decode(prompts, **keys)
    graphs = decoder._room.graphs
    asks = []
    graphs.run = lambda key, step: (asks.append(key), step())
    decoder.decode(prompts, **keys)
    assert decoder._room.graphs is graphs
    assert len(asks) == TOKENS - 1
    assert {bucket.tokens for bucket, _ in asks} == {40, 56, 72}


def test_new_weights_come_to_the_places_that_steps_know(chat_models, one_rank):
    from megatron_gopd.rollout.embedded import load_for_decoding
    from tests.rollout.sample_on_ranks import build_engine

    engine, other = build_engine(chat_models["student"]), load_for_decoding(chat_models["other"], "float32")
    places = [parameter.data_ptr() for parameter in engine.model.parameters()]
    engine.sync(SimpleNamespace(export=other.named_parameters))
    assert [parameter.data_ptr() for parameter in engine.model.parameters()] == places


def test_a_small_cache_stays_between_rollouts_and_a_large_one_goes(qwen3, prompts):
    small, large = fixed(qwen3), fixed(qwen3, memory=2**23)
    for decoder in (small, large):
        decoder.decode(prompts, **asked(max_tokens=2))
        decoder.rest()
    assert (small._room is None, large._room is None) == (False, True)
    same(large.decode(prompts, **asked()), growing(qwen3, prompts, **asked()))


def test_the_host_is_told_of_every_token_and_every_response(qwen3, prompts, uniforms):
    from megatron_gopd.runs.progress import Count

    count, keys = Count(len(prompts)), asked(uniforms=uniforms)
    found = fixed(qwen3).decode(prompts, count=count, **keys)
    assert (count.done, count.tokens) == (len(prompts), sum(len(each.tokens) for each in found))
