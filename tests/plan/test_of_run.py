"""The levers of a run, decided by a process beside it."""

from __future__ import annotations

import pytest

from megatron_gopd.config.placement import Node
from megatron_gopd.errors import UserError
from megatron_gopd.training import memory


def test_a_process_of_its_own_counts_the_memory(configured):
    """Within a job, whose process group the plan's fake ranks would meet."""
    taken = memory.counted(configured(), [Node(("0",), 1)], "NVIDIA H100 80GB HBM3", 80e9, 80e9)
    assert taken.config.student.recompute == "none" and taken.line.startswith("memory: recompute none, all resident: ")


def test_what_cannot_be_counted_is_to_be_set_by_hand(configured):
    with pytest.raises(UserError, match=r"cannot count the memory .*; set student.recompute, .* by hand"):
        memory.counted(configured(), [], "NVIDIA H100 80GB HBM3", 80e9, 80e9)
