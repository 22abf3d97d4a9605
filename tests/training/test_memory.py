from __future__ import annotations

import pytest
import torch

from megatron_gopd.config.placement import Node
from megatron_gopd.errors import UserError
from megatron_gopd.plan.memory import Phase
from megatron_gopd.plan.of_run import Taken
from megatron_gopd.training import memory


def test_without_a_gpu_nothing_is_decided():
    assert memory.take_levers(None, []) is None


def test_a_process_of_its_own_counts_the_memory(configured):
    """Within a job, whose process group the plan's fake ranks would meet."""
    taken = memory.counted(configured(), [Node(("0",), 1)], "NVIDIA H100 80GB HBM3", 80e9, 80e9)
    assert taken.config.student.recompute == "none" and taken.line.startswith("memory: recompute none, all resident: ")


def test_what_cannot_be_counted_is_to_be_set_by_hand(configured):
    with pytest.raises(UserError, match=r"cannot count the memory .*; set student.recompute, .* by hand"):
        memory.counted(configured(), [], "NVIDIA H100 80GB HBM3", 80e9, 80e9)


def test_out_of_memory_is_told_with_the_arithmetic():
    taken = Taken(None, "", [Phase("update", {"activations": 3 * 2**30, "gradients": 2**30})], 2 * 2**30, False)
    error = memory.explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), taken, "train")
    assert "in the phase train: CUDA out of memory. Tried to allocate 2.00 GiB." in str(error)
    assert "counted: 4.0 GiB in the phase update (activations 3.0 + gradients 1.0) of 2.0 usable" in str(error)
    assert error.exit_code == 2
