"""Colocated servers get what the trainer leaves them."""

from __future__ import annotations

import pytest

from megatron_gopd.config.placement import Node
from megatron_gopd.errors import UserError
from megatron_gopd.plan.hardware import GIB, card
from megatron_gopd.plan.memory import WITH_SERVERS
from megatron_gopd.plan.of_run import take
from megatron_gopd.plan.placement import SHARE, place
from megatron_gopd.plan.planning import fastest
from megatron_gopd.plan.report import show
from megatron_gopd.plan.words import levers_in_words
from megatron_gopd.plan.workload import Workload

SERVERS = ("rollout.engine=sglang", "rollout.sglang.colocated=true", "rollout.sglang.count=2")
COLOCATED = (*SERVERS, "student.recompute=none", "student.offload=false")
CARD = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def planned(configured, built_once):
    """The plan of two colocated servers on two cards with so many GiB free."""

    def plan(free: float, *overrides: str):
        config = configured(*COLOCATED, "teachers.teacher.offload=false", *overrides)
        on = card(CARD, 80 * GIB, free * GIB, 2)
        return fastest(config, 2, on, Workload.of(config), place(config, 2, 2))

    return plan


def test_the_share_fills_what_is_usable(planned):
    found = planned(80)
    most = max(phase.bytes for phase in found.phases if phase.name in WITH_SERVERS)
    assert found.machine.usable_bytes - 0.01 * found.machine.free < most <= found.machine.usable_bytes


def test_less_free_memory_is_a_smaller_share_and_the_servers_are_told_it(planned):
    whole, half = planned(80), planned(40)
    assert half.where.fraction < whole.where.fraction < 1
    assert half.config.rollout.sglang.options[SHARE] == half.where.fraction


def test_what_the_trainer_has_at_its_start_is_not_shared_out_twice(planned):
    """The share is of what is free then."""
    found = planned(40)
    assert "gradients" in found.phases[0].parts
    assert sum(found.phases[0].parts.values()) <= found.machine.usable_bytes


def test_the_line_tells_it(planned):
    found = planned(80)
    assert f"{SHARE} {found.where.fraction:g} for servers" in levers_in_words(found)


def test_what_is_set_by_hand_stays(planned):
    found = planned(80, "rollout.sglang.options={mem_fraction_static: 0.4}")
    assert found.where.fraction == 0.4
    assert found.config.rollout.sglang.options == {"mem_fraction_static": 0.4}
    assert SHARE not in levers_in_words(found)


def test_no_room_is_refused_with_its_arithmetic(configured, built_once):
    arithmetic = r"Of 1.6 GiB the trainer keeps .* SGLang's activations and graphs take 10.0"
    with pytest.raises(UserError, match=arithmetic) as refused:
        take(configured(*COLOCATED), [Node(("0", "1"), 2)], CARD, 80 * GIB, 6 * GIB)
    assert f"rollout.sglang.options.{SHARE} by hand" in str(refused.value)


def test_a_plan_without_room_says_the_same(planned):
    found = planned(6)
    assert not found.fits and "no share of a GPU is enough for servers beside the trainer" in show(found)
