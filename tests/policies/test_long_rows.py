"""Rows of 18K tokens: exact under context parallelism, and no mask of tokens x tokens anywhere."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from tests.policies.long_rows_on_ranks import PROMPT, RESPONSE, learn_long, row, score_long
from tests.ranks import on_ranks
from tests.tiny_models import load_plain, save_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the highest memory from /proc"),
]
SMALLEST_MASK = (PROMPT + RESPONSE) ** 2  # bytes, of booleans


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("long"), "qwen3-tied")


@pytest.fixture(scope="module")
def learned_alone(folder):
    return on_ranks(1, learn_long, folder=folder, layout="")


def plain_logprobs(folder) -> np.ndarray:
    import torch

    tokens = torch.tensor([[*row().prompt_tokens, *row().response_tokens]])
    with torch.no_grad():
        logits = load_plain(folder)(tokens[:, :-1], logits_to_keep=RESPONSE).logits[0]
    return logits.log_softmax(-1).gather(1, tokens[0, -RESPONSE:, None])[:, 0].numpy()


@pytest.mark.parametrize(("count", "layout"), [(1, ""), (2, "cp=2"), (4, "cp=2,tp=2,sequence_parallel=true")])
def test_scores_are_those_of_transformers_without_a_quadratic_mask(folder, count, layout):
    logprobs, _, grown = on_ranks(count, score_long, folder=folder, layout=layout)
    np.testing.assert_allclose(logprobs, plain_logprobs(folder), rtol=0, atol=1e-5)
    assert grown < SMALLEST_MASK


@pytest.mark.parametrize(("count", "layout"), [(2, "cp=2"), (2, "pp=2")])
def test_a_step_is_that_of_one_process(folder, learned_alone, count, layout):
    norm, _ = on_ranks(count, learn_long, folder=folder, layout=layout)
    assert norm == pytest.approx(learned_alone[0], rel=1e-5)


@pytest.mark.parametrize(("count", "layout"), [(1, ""), (2, "cp=2")])
def test_the_memory_of_a_step_is_linear_in_its_row(folder, count, layout):
    whole, half = (on_ranks(count, learn_long, folder=folder, layout=layout, share=share)[1] for share in (1, 2))
    assert whole < 2.2 * half
