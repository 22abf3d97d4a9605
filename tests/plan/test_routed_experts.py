"""What the plan makes of rollout.replay_routing."""

from __future__ import annotations

import pytest

from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.planning import plan
from megatron_gopd.plan.routed_experts import routed_experts_bytes
from megatron_gopd.plan.workload import Workload
from tests.tiny_models import save_tiny

WORLD = 4


@pytest.fixture
def replaying(configured, tmp_path):
    folder = save_tiny(tmp_path, "qwen3moe-tied")  # 4 layers, 2 of 8 experts
    return configured(f"student.model={folder}", "rollout.engine=sglang", "rollout.replay_routing=true")


def test_a_rank_holds_a_byte_of_every_choice_of_the_batch_and_two_of_its_own(replaying):
    work = Workload.of(replaying)
    assert routed_experts_bytes(replaying, work, WORLD) == work.lengths.sum() * 4 * 2 * (1 + 2 / WORLD)


def test_a_run_that_replays_nothing_holds_none(configured):
    assert routed_experts_bytes(configured(), Workload.of(configured()), WORLD) == 0


def test_a_plan_counts_those_of_all_ranks_of_a_node(replaying):
    found = plan(replaying, WORLD, machine("h100"), Workload.of(replaying))
    assert found.host["routed experts"] == found.where.world * routed_experts_bytes(
        replaying, found.work, found.where.world
    )
