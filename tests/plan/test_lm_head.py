"""The memory of the distribution loss on a GPU, as a plan holds it."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.kernels.backend import Heads
from megatron_gopd.kernels.target import Target
from megatron_gopd.plan.fake_ranks import as_rank
from megatron_gopd.plan.lm_head import PlannedHead

TOKENS, ROWS, WIDTH = 64, 16384, 32
D = 4 * TOKENS * 8192  # of a block of the vocabulary, float32
STATISTICS = 4 * (8 + 3 * 2) * TOKENS * ROWS // 32  # planes of the student's side and D's, and of each target's
SIDES = 2 * 2 * TOKENS * ROWS


@pytest.mark.parametrize(("keep", "kept"), [(True, SIDES + STATISTICS), (False, 0)])
def test_d_of_a_block_and_statistics_of_parts_are_counted(keep, kept):
    with as_rank(0, 1) as ledger:
        hidden, weight = (torch.empty(size, WIDTH, dtype=torch.bfloat16) for size in (TOKENS, ROWS))
        heads = Heads([hidden] * 3, [weight] * 3, Target(None, None, 1.25, ROWS), None)
        targets = torch.empty(TOKENS)
        with ledger.part("head") as counts:
            found = PlannedHead(ledger).distribution_statistics(heads, targets, 1.0, keep)
            columns = sum(each.untyped_storage().nbytes() for each in found[:1])
            assert ledger.live_bytes - ledger._base == kept + columns
        assert counts.peak_bytes == max(kept, STATISTICS) + D
