"""What a GPU replays, called on a CPU: the tokens and log-probs of the cache that grows."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny_models import VOCABULARY, save_tiny

torch = pytest.importorskip("torch")

TOKENS, TEMPERATURE, STOPS = 40, 0.7, list(range(0, VOCABULARY, 12))
LENGTHS = [3, 11, 1, 7, 7, 20, 2, 5, 9, 4, 6, 13]
MEMORY = 2**30


@pytest.fixture(scope="module", params=["qwen3-tied", "llama-untied", "llama3-tied", "qwen2-tied", "qwen3moe-untied"])
def model(request, tmp_path_factory):
    from megatron_gopd.rollout.embedded import load_for_decoding

    return load_for_decoding(save_tiny(tmp_path_factory.mktemp("tiny"), request.param), "float32")


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
    from megatron_gopd.rollout import buckets

    for name, value in {"LEAST_ROWS": 2, "LEAST_TOKENS": 16, "UNIT": 8}.items():
        monkeypatch.setattr(buckets, name, value)


def asked(**changed) -> dict:
    return {"max_tokens": TOKENS, "stop_ids": STOPS, "temperature": TEMPERATURE} | changed


def same(found, expected) -> None:
    assert [each.tokens.tolist() for each in found] == [each.tokens.tolist() for each in expected]
    assert [each.finished for each in found] == [each.finished for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("greedy", [True, False])
def test_it_decodes_what_the_growing_cache_does(model, prompts, uniforms, small_buckets, greedy):
    from megatron_gopd.rollout.fixed_decode import FixedDecoder
    from megatron_gopd.rollout.sampling import decode

    keys = asked(uniforms=None if greedy else uniforms)
    expected = decode(model, prompts, **keys)
    assert greedy or len({len(each.tokens) for each in expected}) > 3
    same(FixedDecoder(model, len(prompts), MEMORY).decode(prompts, **keys), expected)
