"""A student that takes the experts of its engine, against transformers with the same forced on its routers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.policies import plain_student
from tests.policies.routes_on_ranks import SGD, replayed, routed_batch
from tests.ranks import on_ranks
from tests.tiny_models import load_plain, save_tiny

NAME = "qwen3moe-untied"
CASES = {
    "tp+sp": ("tp=2", {}),
    "pp, recomputed": ("pp=2", {"recompute": "full"}),
    "ep, recomputed": ("ep=2", {"recompute": "full"}),
    "cp": ("cp=2", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("replay"), NAME)


@pytest.fixture(scope="module")
def forced(folder):
    """(the plain student's Update, its weights after it), and the same with the routers' own choices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_student, "load_plain", lambda folder: with_forced_routes(load_plain(folder)))
        return plain_student.plain_steps(folder, 1, **SGD)


@pytest.fixture(scope="module")
def stepped(folder):
    return on_ranks(2, replayed, folder=folder, cases=CASES)


def with_forced_routes(model):
    """The model is called with one row of the batch after the other."""
    for number, layer in enumerate(model.model.layers):
        layer.mlp.gate.forward = forced_router(layer.mlp.gate, number)
    return model


def forced_router(gate, layer: int):
    import torch

    rows = itertools.cycle(each.routed_experts and each.routed_experts.chosen for each in routed_batch())

    def forward(hidden):
        logits = hidden @ gate.weight.T
        probabilities = logits.softmax(-1)
        chosen = probabilities.topk(gate.top_k).indices
        if (told := next(rows)) is not None:
            chosen[: len(told)] = torch.from_numpy(told[:, layer].astype(np.int64))
        weights = probabilities.gather(1, chosen)
        return logits, weights / weights.sum(-1, keepdim=True), chosen

    return forward


@pytest.mark.parametrize("case", CASES)
def test_log_probs_are_those_of_the_experts_that_were_told(stepped, forced, case):
    _, update, _ = stepped[case]
    for logprobs, expected in zip(update.logprobs, forced[0][0].logprobs, strict=True):
        np.testing.assert_allclose(logprobs, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_scoring_takes_them_too(stepped, case):
    before, update, _ = stepped[case]
    np.testing.assert_allclose(np.concatenate(before), np.concatenate(update.logprobs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_experts_that_were_told_routers_among_them(stepped, forced, case):
    _, _, weights = stepped[case]
    for name, value in forced[1].items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_other_experts_are_another_function(folder, forced):
    (own,), _ = plain_student.plain_steps(folder, 1, **SGD)
    assert np.abs(np.concatenate(own.logprobs) - np.concatenate(forced[0][0].logprobs)).mean() > 0.1
