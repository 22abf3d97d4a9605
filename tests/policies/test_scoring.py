"""Log-probs, entropies and distributions under every layout, against transformers in float32."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.score_on_ranks import TEMPERATURE, WHOLE_ROW, rows, score_all
from tests.ranks import on_ranks
from tests.tiny_models import NAMES, SCALED, load_plain, save_tiny

TWO_RANKS = ["llama3-tied", "qwen2-untied", "qwen3-tied"]
LAYOUTS = {"tp": "tp=2", "dp": "", "tp+sp": "tp=2,sequence_parallel=true", "pp": "pp=2"}
BUDGETS = [4096, 400, 1]  # all rows packed; some; each alone
NATS = 1e-5


@pytest.fixture(scope="module")
def plain(models):
    """{model: [row: [response, V] log-probs by transformers]}"""
    return {name: plain_laws(models[name]) for name in NAMES}


def plain_laws(folder) -> list[np.ndarray]:
    import torch

    model = load_plain(folder)
    laws = []
    for row in rows():
        with torch.no_grad():
            logits = model(torch.tensor([[*row.prompt_tokens, *row.response_tokens]])).logits[0]
        laws.append((logits / TEMPERATURE).log_softmax(-1)[len(row.prompt_tokens) - 1 : -1].numpy())
    return laws


@pytest.fixture(scope="module")
def scored_alone(models, plain, alone):
    return score_all(models, [""], BUDGETS)


@pytest.fixture(scope="module")
def scored_by_two(models, plain):
    folders = {name: models[name] for name in TWO_RANKS}
    return on_ranks(2, score_all, folders=folders, layouts=list(LAYOUTS.values()), budgets=BUDGETS)


def check(answers: dict, laws: list[np.ndarray], budget: int) -> None:
    for row, law, logprobs, entropy in zip(rows(), laws, *answers[budget], strict=True):
        expected = np.take_along_axis(law, np.array(row.response_tokens)[:, None], 1)[:, 0]
        np.testing.assert_allclose(logprobs, expected, rtol=0, atol=NATS)
        np.testing.assert_allclose(entropy, -(np.exp(law) * law).sum(1), rtol=0, atol=NATS)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", NAMES)
def test_one_rank_scores_as_transformers_does(scored_alone, plain, name, budget):
    check(scored_alone[name, ""], plain[name], budget)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_score_as_transformers_does(scored_by_two, plain, name, layout, budget):
    check(scored_by_two[name, LAYOUTS[layout]], plain[name], budget)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_distribution_is_that_of_transformers(scored_alone, plain, name):
    np.testing.assert_allclose(scored_alone[name, ""]["law"], plain[name][WHOLE_ROW], rtol=0, atol=NATS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TWO_RANKS)
def test_the_whole_distribution_of_two_ranks_is_that_of_transformers(scored_by_two, plain, name, layout):
    law = scored_by_two[name, LAYOUTS[layout]]["law"]
    np.testing.assert_allclose(law, plain[name][WHOLE_ROW], rtol=0, atol=NATS)


def test_shards_score_as_the_whole_file_does(sharded, scored_alone, alone):
    logprobs, _ = score_all({"sharded": sharded}, [""], [400])["sharded", ""][400]
    for cut, whole in zip(logprobs, scored_alone["qwen3-untied", ""][400][0], strict=True):
        np.testing.assert_array_equal(cut, whole)


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    return {name: save_tiny(tmp_path_factory.mktemp("scaled"), name) for name in SCALED}


@pytest.fixture(scope="module")
def scored_scaled(scaled):
    return on_ranks(2, score_all, folders=scaled, layouts=["tp=2", "cp=2"], budgets=[400])


@pytest.mark.parametrize("layout", ["tp=2", "cp=2"])
@pytest.mark.parametrize("name", SCALED)
def test_scaled_rope_scores_as_transformers_does(scaled, scored_scaled, name, layout):
    check(scored_scaled[name, layout], plain_laws(scaled[name]), 400)
