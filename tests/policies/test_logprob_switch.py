"""training.logprob: with and without logits in memory, training is the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.steps_on_ranks import take_all
from tests.ranks import on_ranks
from tests.tiny_models import save_tiny

MODELS = ["qwen3-tied", "llama-untied"]
LAYOUTS = ["tp=2,sequence_parallel=true", "tp=2", "pp=2"]
BUDGET = 48  # several micro-batches in the pipeline
STEPS = {"type": "adam", "lr": 1e-3, "eps": 1e-5, "clip_grad": 1.0, "budget": BUDGET}
CASES = {logprob: STEPS | {"logprob": logprob, "student": {"recompute": "full"}} for logprob in ("fused", "naive")}


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("switch")
    folders = {name: save_tiny(folder, name) for name in MODELS}
    return on_ranks(2, take_all, folders=folders, layouts=LAYOUTS, cases=CASES, steps=3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_step_sees_the_same_log_probs_loss_and_gradient(stepped, name, layout):
    for fused, naive in zip(*(stepped[name, layout, case][0] for case in ("fused", "naive")), strict=True):
        np.testing.assert_allclose(np.concatenate(fused.logprobs), np.concatenate(naive.logprobs), rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(fused.entropy), np.concatenate(naive.entropy), rtol=0, atol=1e-5)
        assert fused.loss == pytest.approx(naive.loss, abs=1e-5)
        assert fused.grad_norm == pytest.approx(naive.grad_norm, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_weights_end_where_they_do_with_logits_in_memory(stepped, name, layout):
    fused, naive = (stepped[name, layout, case][1] for case in ("fused", "naive"))
    for weight, value in fused.items():
        np.testing.assert_allclose(value, naive[weight], rtol=0, atol=1e-5, err_msg=weight)


@pytest.mark.parametrize("name", MODELS)
def test_overlapped_reduction_gets_the_weights_gradient_too(tmp_path, name):
    overlap = STEPS | {"student": {"overlap_communication": True}}
    folders, cases = {name: save_tiny(tmp_path, name)}, {"plain": STEPS, "overlap": overlap}
    stepped = on_ranks(2, take_all, folders=folders, layouts=[""], cases=cases, steps=2)
    for plain, overlapped in zip(*(stepped[name, "", case][0] for case in cases), strict=True):
        assert overlapped.loss == plain.loss
        assert overlapped.grad_norm == pytest.approx(plain.grad_norm, rel=1e-6)
