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


@pytest.mark.parametrize(("ranks_per_node", "of_node"), [(4, 1.0), (2, 0.5), (1, 0.25)])
def test_rank_0_holds_a_byte_of_every_choice_and_each_rank_those_of_its_node_and_two_of_its_own(
    replaying, ranks_per_node, of_node
):
    work = Workload.of(replaying)
    held = 1 + ranks_per_node * (of_node + 2 / WORLD)
    assert routed_experts_bytes(replaying, work, WORLD, ranks_per_node) == work.lengths.sum() * 4 * 2 * held


def test_the_ranks_of_one_replica_read_the_same_rows(replaying):
    work, split = Workload.of(replaying), {"layout": replaying.student.layout.model_copy(update={"tp": 2})}
    layout = replaying.model_copy(update={"student": replaying.student.model_copy(update=split)})
    held = 1 + 2 * (0.5 + 2 / 2)
    assert routed_experts_bytes(layout, work, WORLD, 2) == work.lengths.sum() * 4 * 2 * held


def test_a_run_that_replays_nothing_holds_none(configured):
    assert routed_experts_bytes(configured(), Workload.of(configured()), WORLD, WORLD) == 0


def test_a_plan_counts_those_of_all_ranks_of_a_node(replaying):
    found = plan(replaying, WORLD, machine("h100"), Workload.of(replaying))
    world = found.where.world
    assert found.host["routed experts"] == routed_experts_bytes(replaying, found.work, world, world)
