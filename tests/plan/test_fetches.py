"""What is waited for of copies between host and GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_gopd.plan.fetches import of_optimizer, of_scorers

ON = SimpleNamespace(host_bandwidth=10.0)


def scorers(**offload):
    roles = [SimpleNamespace(name=name, settings=SimpleNamespace(offload=how)) for name, how in offload.items()]
    return roles, {name: SimpleNamespace(weights=20.0) for name in offload}  # 2 seconds


def test_what_stays_is_not_waited_for():
    assert of_scorers(*scorers(a=False), {"a": 9.0}, 0.0, 4, ON) == {"a": 0.0}


def test_what_comes_when_it_is_used_is_waited_for_in_every_part_of_a_batch():
    assert of_scorers(*scorers(a=True), {"a": 9.0}, 100.0, 4, ON) == {"a": 8.0}


def test_what_comes_ahead_hides_behind_what_computes_before_it():
    computing = {"a": 4.0, "b": 4.0}
    assert of_scorers(*scorers(a="ahead", b="ahead"), computing, 5.0, 1, ON) == {"a": 0.0, "b": 0.0}
    assert of_scorers(*scorers(a="ahead", b="ahead"), computing, 0.5, 4, ON) == {"a": 1.5 + 3 * 2, "b": 4 * 1.0}


@pytest.mark.parametrize(
    ("offload", "after", "waited"),
    [(False, 0.0, 0.0), (True, 9.0, 6.0), (True, 0.5, 7.5), ("ahead", 9.0, 0.0), ("ahead", 0.0, 2.0)],
)
def test_an_optimizer_comes_in_every_step_and_leaves_behind_what_follows(offload, after, waited):
    student = SimpleNamespace(offload=offload)
    assert of_optimizer(student, 20.0, computing=3.0, after=after, steps=3, machine=ON) == waited
