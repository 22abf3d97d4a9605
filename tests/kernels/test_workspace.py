"""What the kernel takes beside its inputs and outputs, at the size of a real step."""

from __future__ import annotations

import pytest

from megatron_gopd.kernels.workspace import workspace_bytes

STEP = {"tokens": 18432, "hidden": 2560, "vocabulary": 151936, "ranks": 4}


@pytest.mark.parametrize(("mode", "gib"), [("recompute", 0.10), ("one_pass", 0.25)])
def test_a_real_step_takes_little_where_main_grad_takes_the_weights_gradient(mode, gib):
    assert workspace_bytes(**STEP, mode=mode) < gib * 2**30


def test_a_gradient_that_waits_for_the_backward_pass_is_counted():
    waiting = workspace_bytes(**STEP, mode="one_pass", holds_weight_gradient=True)
    assert waiting - workspace_bytes(**STEP, mode="one_pass") == 4 * 2560 * 151936 // 4


@pytest.mark.parametrize(("mode", "gib"), [("recompute", 0.15), ("one_pass", 0.45)])
def test_a_distribution_of_three_heads_takes_little_too(mode, gib):
    found = workspace_bytes(**STEP, mode=mode, targets=(2560, 2560))
    assert workspace_bytes(**STEP, mode=mode) < found < gib * 2**30
