from __future__ import annotations

import torch

from megatron_gopd.plan.memory import Phase
from megatron_gopd.plan.of_run import Taken
from megatron_gopd.training import memory


def test_without_a_gpu_nothing_is_decided():
    assert memory.take_levers(None, []) is None


def test_out_of_memory_is_told_with_the_arithmetic():
    taken = Taken(None, "", [Phase("update", {"activations": 3 * 2**30, "gradients": 2**30})], 2 * 2**30, False)
    error = memory.explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), taken, "train")
    assert "in the phase train: CUDA out of memory. Tried to allocate 2.00 GiB." in str(error)
    assert "counted: 4.0 GiB in the phase update (activations 3.0 + gradients 1.0) of 2.0 usable" in str(error)
    assert error.exit_code == 2
