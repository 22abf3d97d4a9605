"""The embedded engine: whose random numbers, which weights, what comes back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.errors import UserError
from tests.chat_models import save_bigram_model, token_id, tokenizer
from tests.ranks import on_ranks
from tests.rollout.sample_on_ranks import build_engine, prompts, sample, sample_tokens


@pytest.fixture(scope="module")
def two_ranks(chat_models):
    """What two ranks sample, before this process has a group of its own."""
    return on_ranks(
        2, sample_tokens, folder=chat_models["student"], questions=5, samples_per_prompt=2, max_batch_size=3
    )


@pytest.fixture(scope="module")
def bigrams(tmp_path_factory):
    """Says 7, then ends with one of its two stop ids or says 7 again."""
    seven = token_id("7")
    end, other_end = tokenizer().convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    laws = {token_id("\n"): {seven: 1.0}, seven: {seven: 0.5, end: 0.25, other_end: 0.25}}
    return save_bigram_model(tmp_path_factory.mktemp("bigrams"), laws)


@pytest.fixture(scope="module")
def engine(two_ranks, bigrams, chat_models, one_rank):
    return build_engine(chat_models["student"])


@pytest.fixture(scope="module")
def sevens(bigrams, engine):
    """40 trajectories of the bigram model, at most 3 tokens each."""
    return sample(build_engine(bigrams, max_response_tokens=3), prompts(20), samples=2)


def tokens(trajectories) -> list[list[int]]:
    return [trajectory.response_tokens.tolist() for trajectory in trajectories]


def test_every_prompt_gets_its_samples_in_order(engine):
    answers = sample(engine, prompts(3), samples=2)
    assert [(a.prompt.id, a.sample) for a in answers] == [(f"p{n}", s) for n in range(3) for s in range(2)]


def test_log_probs_of_given_tokens_are_those_of_transformers(engine, chat_models):
    import torch

    from megatron_gopd.data.packing import Row
    from tests.tiny_models import load_plain

    rows = [Row([5], [6, 7, 8]), Row([9, 10, 11], [12]), Row([3, 4], list(range(20, 60)))]
    model = load_plain(chat_models["student"])
    for row, found in zip(rows, engine.logprobs(rows), strict=True):
        tokens = torch.tensor([[*row.prompt_tokens, *row.response_tokens]])
        with torch.no_grad():
            law = model(tokens).logits[0, len(row.prompt_tokens) - 1 : -1].log_softmax(-1)
        expected = law.gather(1, torch.tensor(row.response_tokens)[:, None])[:, 0]
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_samples_of_a_prompt_differ(engine):
    first, second = sample(engine, prompts(1), samples=2)
    assert first.response_tokens.tolist() != second.response_tokens.tolist()


def test_a_chunk_has_at_most_max_batch_size_responses(chat_models, engine):
    small = build_engine(chat_models["student"], max_batch_size=2, samples_per_prompt=5)
    assert [len(chunk) for chunk in small.generate(prompts(1), 1)] == [2, 2, 1]


@pytest.mark.parametrize("size", [1, 8])
def test_a_trajectory_does_not_depend_on_its_batch(chat_models, engine, size):
    one_by_one = build_engine(chat_models["student"], max_batch_size=size)
    assert tokens(sample(one_by_one, prompts(8)[::-1])) == tokens(sample(engine, prompts(8)))[::-1]


def test_two_ranks_sample_what_one_does(two_ranks, chat_models, engine):
    assert two_ranks == sample_tokens(chat_models["student"], 5, samples_per_prompt=2)


def test_the_same_step_samples_the_same(engine):
    assert tokens(sample(engine, prompts(2), 3)) == tokens(sample(engine, prompts(2), 3))


def test_another_step_samples_anew(engine):
    assert tokens(sample(engine, prompts(2), 3)) != tokens(sample(engine, prompts(2), 4))


def test_another_seed_samples_anew(chat_models, engine):
    other = build_engine(chat_models["student"], seed=8)
    assert tokens(sample(other, prompts(2))) != tokens(sample(engine, prompts(2)))


def test_max_tokens_bounds_a_response(engine):
    assert max(map(len, sample(engine, prompts(2), max_tokens=4))) == 4


def test_sync_takes_over_the_policy_s_weights(chat_models, engine):
    other = build_engine(chat_models["other"])
    synced = build_engine(chat_models["student"])
    assert tokens(sample(synced, prompts(4))) != tokens(sample(other, prompts(4)))
    synced.sync(SimpleNamespace(export=other.model.named_parameters))
    assert tokens(sample(synced, prompts(4))) == tokens(sample(other, prompts(4)))


def test_a_trajectory_tells_how_often_its_weights_were_synced(chat_models, engine):
    synced = build_engine(chat_models["student"])
    versions = []
    for _ in range(3):
        versions += [int(trajectory.weight_versions[0]) for trajectory in sample(synced, prompts(1))]
        synced.sync(SimpleNamespace(export=engine.model.named_parameters))
    assert versions == [0, 1, 2]


def test_a_policy_that_lacks_a_parameter_is_refused(chat_models, engine):
    few = dict(engine.model.named_parameters())
    del few["model.norm.weight"]
    with pytest.raises(RuntimeError, match="did not export .*model.norm.weight"):
        build_engine(chat_models["student"]).sync(SimpleNamespace(export=few.items))


def test_a_policy_with_an_unknown_parameter_is_refused(chat_models, engine):
    many = dict(engine.model.named_parameters())
    many["model.extra.weight"] = many["model.norm.weight"]
    with pytest.raises(RuntimeError, match="model.extra.weight"):
        build_engine(chat_models["student"]).sync(SimpleNamespace(export=many.items))


def test_an_id_the_tokenizer_does_not_know_is_a_user_error(chat_models, engine):
    with pytest.raises(UserError, match=r"sampled token id \d+, past the tokenizer's last id \(295\), for prompt 'p0'"):
        sample(build_engine(chat_models["past"]), prompts(1))


def test_weights_that_hold_nan_are_a_user_error(chat_models, engine):
    broken = build_engine(chat_models["student"])
    broken.model.model.norm.weight[0] = np.nan
    with pytest.raises(UserError, match="a token sampled for prompt 'p0' has log-prob nan"):
        sample(broken, prompts(1))


def test_a_folder_without_a_tokenizer_is_a_user_error(chat_models, engine, tmp_path):
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        build_engine(tmp_path)


def test_finish_reason_tells_whether_a_stop_id_ended_it(sevens):
    reasons = {(a.finish_reason, len(a), a.response_tokens[-1] == token_id("7")) for a in sevens}
    assert reasons == {("stop", 2, False), ("stop", 3, False), ("length", 3, True)}


def test_each_stop_id_of_generation_config_ends_a_response(sevens):
    ends = {a.response_tokens[-1] for a in sevens if a.finish_reason == "stop"}
    assert ends == set(tokenizer().convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


def test_the_stop_id_is_part_of_the_response_and_scored(sevens):
    for answer in sevens:
        law = {token_id("7"): 0.5}
        expected = [0.0, *(np.log(law.get(token, 0.25)) for token in answer.response_tokens[1:])]
        np.testing.assert_allclose(answer.behaviour_logprobs, expected, rtol=0, atol=1e-5)


def test_behaviour_logprobs_are_float32(sevens):
    assert {answer.behaviour_logprobs.dtype for answer in sevens} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["qwen3-tied", "qwen3moe-untied"])
def test_a_converted_model_decodes_as_the_original_does(one_rank, saved_tiny, tmp_path, name):
    import torch

    from megatron_gopd.mcore.convert import hf_to_megatron
    from megatron_gopd.rollout.embedded import load_for_decoding

    hf_to_megatron(saved_tiny[name], tmp_path / "megatron")
    one, other = (load_for_decoding(folder, "float32") for folder in (saved_tiny[name], tmp_path / "megatron"))
    tokens = torch.arange(12).reshape(2, 6)
    assert torch.equal(one(tokens).logits, other(tokens).logits)


@pytest.fixture(scope="session")
def saved_tiny(tmp_path_factory):
    """Written before there is a process group: transformers would save on rank 0 only."""
    from tests.tiny_models import save_tiny

    folder = tmp_path_factory.mktemp("tiny")
    return {name: save_tiny(folder, name) for name in ("qwen3-tied", "qwen3moe-untied")}
