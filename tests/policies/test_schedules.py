"""The weight's gradient of the LM head goes straight to main_grad in every schedule that runs a forward pass once, with
a scale that is known; where it is not known, it waits for the backward pass. Both are the same update."""

from __future__ import annotations

import numpy as np
import pytest

from tests.policies.schedules_on_ranks import all_schedules
from tests.ranks import on_ranks
from tests.tiny_models import save_tiny

MODELS = ["qwen3-tied", "llama-untied"]
OVERLAPPED = "no pipeline, reductions overlapped"
SCHEDULES = {
    "no pipeline": ("", {}),
    "no pipeline, layers recomputed": ("", {"recompute": "full"}),
    OVERLAPPED: ("", {"overlap_communication": True}),
    "1F1B": ("pp=2", {}),
    "1F1B, layers recomputed": ("pp=2", {"recompute": "full"}),
    "1F1B, reductions overlapped": ("pp=2", {"overlap_communication": True}),
}


@pytest.fixture(scope="module")
def updated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schedules")
    return on_ranks(2, all_schedules, folders={name: save_tiny(folder, name) for name in MODELS}, schedules=SCHEDULES)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_gradient_that_goes_straight_to_main_grad_is_the_one_that_waits(updated, name, schedule):
    straight, waiting = (updated[name, schedule, held] for held in (False, True))
    assert straight["norms"] == pytest.approx(waiting["norms"], rel=1e-5)
    for weight, value in straight["weights"].items():
        np.testing.assert_allclose(value, waiting["weights"][weight], rtol=0, atol=1e-6, err_msg=weight)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_second_gradient_of_the_head_is_taken_only_where_the_scale_is_unknown(updated, name, schedule):
    straight, waiting = (updated[name, schedule, held]["taken"] for held in (False, True))
    assert len(straight) == len(waiting)
    assert not any(straight)
    assert all(waiting)


@pytest.mark.parametrize("name", MODELS)
def test_reductions_that_overlap_wait_for_the_heads_gradient(updated, name):
    plain, overlapped = (
        updated[name, schedule, False] for schedule in ("no pipeline", "no pipeline, reductions overlapped")
    )
    assert overlapped["norms"] == pytest.approx(plain["norms"], rel=1e-6)
