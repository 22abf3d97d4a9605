"""The learning rate of every step."""

from __future__ import annotations

import pytest

from megatron_gopd.config.schema import Optimizer
from megatron_gopd.mcore.optimizer import learning_rate


def rates(steps: int, **settings) -> list[float]:
    return [learning_rate(step, steps, Optimizer(**settings)) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "linear"}, [1.0, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "min_lr": 0.2}, [1.0, 0.8, 0.6, 0.4]),
        ({"schedule": "cosine"}, [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
        ({"warmup_steps": 2}, [0.5, 1.0, 1.0, 1.0]),
        ({"warmup_steps": 2, "schedule": "linear"}, [0.5, 1.0, 1.0, 0.5]),
    ],
)
def test_the_rate_of_four_steps(settings, expected):
    assert rates(4, lr=1.0, **settings) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_no_step_is_wasted_on_a_rate_of_0(schedule):
    assert all(rate > 0 for rate in rates(10, lr=1e-5, schedule=schedule, warmup_steps=3))
