"""What the plan makes of algorithm.gradient: top_k."""

from __future__ import annotations

from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.planning import plan
from megatron_gopd.plan.supports import supports_bytes
from megatron_gopd.plan.workload import Workload

TOP_K = "algorithm.gradient=top_k", "algorithm.top_k=9", "teachers.teacher.engine=sglang"


def test_every_rank_holds_ids_and_log_probs_of_the_whole_batch_twice(configured):
    config = configured(*TOP_K)
    tokens = Workload.of(config).response_tokens
    assert supports_bytes(config, Workload.of(config)) == 2 * tokens * 10 * 12


def test_without_a_reference_an_entry_is_eight_bytes(configured):
    config = configured(*TOP_K, "algorithm.lambda=1.0")
    assert supports_bytes(config, Workload.of(config)) == 2 * Workload.of(config).response_tokens * 10 * 8


def test_other_gradients_leave_none(configured):
    config = configured()
    assert supports_bytes(config, Workload.of(config)) == 0


def test_a_plan_counts_those_of_all_ranks_of_a_node(configured):
    config = configured(*TOP_K)
    found = plan(config, 4, machine("h100"), Workload.of(config))
    assert found.host["supports"] == 4 * supports_bytes(config, found.work)
