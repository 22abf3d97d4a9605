"""What the kernel takes beside its inputs and outputs, at the size of a real step."""

from __future__ import annotations

import pytest

from megatron_gopd.kernels.chunks import GPU_TOKENS, tokens_per_chunk
from megatron_gopd.kernels.workspace import CPU, GPU, gpu_workspace_bytes, kept_bytes, workspace_bytes

GIB = 2**30
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


@pytest.mark.parametrize(("free", "kept"), [(60, 1.25), (10, 1.25), (8, 1.0), (4.3, 0.5), (0.1, 1 / 16), (-3, 1 / 16)])
def test_a_share_of_a_gpus_free_memory_is_kept_of_a_chunk_in_steps_and_within_bounds(free, kept):
    assert kept_bytes(free * GIB) == kept * GIB


def test_less_free_memory_makes_smaller_chunks():
    ample, scarce = (tokens_per_chunk(151936, 2, GPU, kept_bytes(free * GIB)) for free in (60, 4))
    assert (ample, scarce) == (4096, 1728)


def test_a_shard_of_the_vocabulary_takes_no_more_tokens_and_so_less_memory():
    assert tokens_per_chunk(151936 // 4, 2, GPU) == tokens_per_chunk(151936, 2, GPU) == GPU_TOKENS
    of_one, of_four = (gpu_workspace_bytes(16384, 2560, 151936, ranks, "one_pass") for ranks in (1, 4))
    assert of_four < of_one / 2


@pytest.mark.parametrize(("mode", "most"), [("one_pass", 1.5 * GIB), ("recompute", 300 * 2**20)])
def test_a_gpus_memory_is_within_what_was_asked_for(mode, most):
    assert gpu_workspace_bytes(16384, 2560, 151936, 1, mode) <= most


def test_a_cpus_chunks_are_its_own():
    assert tokens_per_chunk(151936, 2, CPU) == 1088
    assert tokens_per_chunk(1000, 2, CPU) == 2048
