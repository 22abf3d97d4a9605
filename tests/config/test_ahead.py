"""What does not go with responses sampled ahead of their steps: refused, with why, and what to set instead."""

from __future__ import annotations

import pytest

from megatron_gopd.config import Config, load_config
from megatron_gopd.errors import UserError
from tests.config.minimal import MINIMAL


@pytest.fixture
def read(tmp_path):
    """read(rollout, **more) -> the minimal configuration with that section."""

    def read(rollout: str, more: str = "") -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(f"{MINIMAL}rollout: {{{rollout}}}\n{more}")
        return load_config(path)

    return read


@pytest.mark.parametrize(
    ("rollout", "why", "instead"),
    [
        ("max_staleness: 2", "samples and trains by turns", "set that engine, or max_staleness: 0"),
        ("max_staleness: -1", "greater than or equal to 0", ""),
        (
            "engine: sglang, max_staleness: 1, sglang: {colocated: true}",
            "servers without their memory cannot sample while a step trains",
            "give them GPUs of their own and colocated: false, or set max_staleness: 0",
        ),
        ("over_sampling: 0.5", "below 1 a batch never fills", "1.25 for a quarter more"),
        ("over_sampling: 1.25", "carries prompts over to later steps", "leave over_sampling out"),
        ("engine: sglang, max_staleness: 2, max_age: 3", "max_age is 3, and max_staleness 2", "write one of these"),
        ("engine: sglang, max_staleness: 2, max_age: 0", "max_age is 0, and max_staleness 2", "write one of these"),
        ("max_age: 1", "counts the updates that a response sees", "leave max_age out"),
        ("order_window: 8", "bounds how far responses overtake", "leave order_window out"),
        ("engine: sglang, max_staleness: 1, order_window: 3", "less than a batch", "write as many or more"),
        ("engine: sglang, sglang: {on_update: in_place}", "of responses under way", "leave sglang.on_update out"),
    ],
)
def test_is_refused(read, rollout, why, instead):
    with pytest.raises(UserError) as refused:
        read(rollout)
    (line,) = str(refused.value).splitlines()
    assert why in line and instead in line


def test_what_is_not_the_students_is_refused(read):
    with pytest.raises(UserError, match="learns what others wrote, which grows no older: leave it out"):
        read("engine: sglang, max_staleness: 1", "algorithm: {type: sft}\n")


def test_all_of_it_together(read):
    rollout = read(
        "engine: sglang, max_staleness: 4, over_sampling: 1.25, max_age: 2, order_window: 4, "
        "sglang: {on_update: in_place}"
    ).rollout
    assert (rollout.max_staleness, rollout.max_age, rollout.sglang.flushes) == (4, 2, False)
