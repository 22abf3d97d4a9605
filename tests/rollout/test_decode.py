"""Batched decoding against transformers, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from tests.chat_models import prompt_tokens, save_bigram_model, token_id

torch = pytest.importorskip("torch")

TOKENS, TEMPERATURE = 24, 0.7
STOPS = list(range(0, 290, 20))  # many, so that rows end at different steps
LENGTHS = [3, 11, 1, 7, 7, 20, 2, 5, 9, 4]
DRAWS = 20_000


@pytest.fixture(scope="module", params=["student", "teacher"])
def folder(chat_models, request):
    return chat_models[request.param]


@pytest.fixture(scope="module")
def model(folder):
    from megatron_gopd.rollout.embedded import load_for_decoding

    return load_for_decoding(folder, "float32")


@pytest.fixture(scope="module")
def plain(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(3, 290, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def uniforms() -> np.ndarray:
    return np.random.default_rng(1).random((len(LENGTHS), TOKENS))


@pytest.fixture(scope="module")
def sampled(model, prompts, uniforms):
    return decode(model, prompts, uniforms=uniforms)


@pytest.fixture(scope="module")
def three_tokens(tmp_path_factory):
    """A model that says 1, 2 or 3 with probabilities 0.2, 0.3, 0.5, whatever it is asked."""
    from megatron_gopd.rollout.embedded import load_for_decoding

    law = dict(zip(map(token_id, "123"), (0.2, 0.3, 0.5), strict=True))
    folder = save_bigram_model(tmp_path_factory.mktemp("three"), {token_id("\n"): law})
    return load_for_decoding(folder, "float32")


def decode(model, prompts, **keys):
    from megatron_gopd.rollout.sampling import decode

    return decode(model, prompts, **{"max_tokens": TOKENS, "stop_ids": STOPS, "temperature": TEMPERATURE} | keys)


def law_of(plain, prompt, response) -> torch.Tensor:
    """[response, V] log-probs of one full forward."""
    with torch.no_grad():
        logits = plain(torch.tensor([[*prompt, *response]])).logits[0]
    return (logits / TEMPERATURE).log_softmax(-1)[len(prompt) - 1 : -1]


def test_greedy_is_transformers_generate_token_for_token(model, plain, prompts):
    expected = []
    for prompt in prompts:  # each alone: no padding to go wrong
        settings = {"do_sample": False, "max_new_tokens": TOKENS, "eos_token_id": STOPS, "pad_token_id": 0}
        tokens = torch.tensor([prompt])
        answer = plain.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        expected.append(answer[0, len(prompt) :].tolist())
    assert [response.tokens.tolist() for response in decode(model, prompts)] == expected


def test_the_rows_of_these_tests_leave_the_batch_at_different_steps(sampled):
    assert len({len(response.tokens) for response in sampled}) > 3


def test_sampled_logprobs_are_those_of_a_full_forward(sampled, plain, prompts):
    for prompt, response in zip(prompts, sampled, strict=True):
        law = law_of(plain, prompt, response.tokens)
        expected = law.gather(1, torch.tensor(response.tokens)[:, None])[:, 0]
        np.testing.assert_allclose(response.logprobs, expected, rtol=0, atol=1e-5)


def test_every_token_is_where_the_cumulative_law_passes_its_uniform(sampled, plain, prompts, uniforms):
    for prompt, response, row in zip(prompts, sampled, uniforms, strict=True):
        cumulative = law_of(plain, prompt, response.tokens).double().exp().cumsum(-1).numpy()
        chosen = np.array(response.tokens)
        upper = cumulative[np.arange(len(chosen)), chosen]
        lower = np.where(chosen > 0, cumulative[np.arange(len(chosen)), chosen - 1], 0.0)
        assert (lower - 1e-5 <= row[: len(chosen)]).all()
        assert (row[: len(chosen)] <= upper + 1e-5).all()


def test_a_response_does_not_depend_on_the_batch_it_is_decoded_in(model, prompts, uniforms, sampled):
    alone = [decode(model, [prompt], uniforms=row[None])[0] for prompt, row in zip(prompts, uniforms, strict=True)]
    assert [response.tokens.tolist() for response in alone] == [response.tokens.tolist() for response in sampled]


def test_a_response_ends_with_its_first_stop_id(sampled):
    for response in sampled:
        assert not set(response.tokens[:-1]) & set(STOPS)
        assert response.finished == (response.tokens[-1] in STOPS)
        assert response.finished or len(response.tokens) == TOKENS


def test_every_stop_id_ends_a_response(sampled):
    assert len({response.tokens[-1] for response in sampled if response.finished}) > 1


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, "1"), (0.199, "1"), (0.201, "2"), (0.499, "2"), (0.501, "3"), (1 - 2**-53, "3")]
)
def test_tokens_without_mass_are_never_drawn(three_tokens, uniform, token):
    keys = {"max_tokens": 1, "stop_ids": [], "temperature": 1.0, "uniforms": np.array([[uniform]])}
    (response,) = decode(three_tokens, [prompt_tokens("?")], **keys)
    assert response.tokens.tolist() == [token_id(token)]


def test_the_temperature_shapes_the_law(three_tokens):
    keys = {"max_tokens": 1, "stop_ids": [], "temperature": 0.5}
    (response,) = decode(three_tokens, [prompt_tokens("?")], **keys)
    assert response.logprobs == pytest.approx([np.log(0.25 / (0.04 + 0.09 + 0.25))], abs=1e-5)


def test_draws_follow_the_softmax(chat_models, plain, model, prompts):
    """Pearson's chi-square; tokens expected less than 5 times count as one."""
    prompt = prompts[0]
    uniforms = np.random.default_rng(2).random((DRAWS, 1))
    responses = decode(model, [prompt] * DRAWS, max_tokens=1, uniforms=uniforms)
    counts = np.bincount([response.tokens[0] for response in responses], minlength=plain.config.vocab_size)
    expected = law_of(plain, prompt, [0])[0].double().exp().numpy() * DRAWS
    common = expected >= 5
    observed, wanted = (np.append(values[common], values[~common].sum()) for values in (counts, expected))
    statistic, freedom = ((observed - wanted) ** 2 / wanted).sum(), common.sum()
    assert freedom > 50
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)
