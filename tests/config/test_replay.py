"""Where routing replay cannot be had."""

from __future__ import annotations

import pytest

from tests.config.minimal import MINIMAL

REPLAY = "rollout.replay_routing=true"
SERVED = "rollout.engine=sglang"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "rollout: replay_routing needs engine: sglang; no other tells which experts it chose"),
        (["rollout.engine=mine.py:Engine"], "rollout: replay_routing needs engine: sglang"),
        (
            [SERVED, "rollout.sglang.options={pp_size: 2}"],
            "rollout: replay_routing: servers of several pipeline stages tell of one: leave pp-size out",
        ),
        (
            [SERVED, "algorithm.type=sft"],
            "rollout.replay_routing is of what the student samples, and in SFT others write: leave it out",
        ),
    ],
)
def test_it_is_refused_in_one_line(message, overrides, expected):
    text = message(MINIMAL, REPLAY, *overrides)
    assert expected in text and len(text.splitlines()) == 1


def test_a_batch_sampled_ahead_may_be_replayed(load):
    assert load(MINIMAL, REPLAY, SERVED, "rollout.max_staleness=1").rollout.replay_routing
