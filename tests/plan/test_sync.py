"""What of a student's weights is sent, by whom, and how long that takes."""

from __future__ import annotations

import pytest

from megatron_gopd.plan.decode import parameters
from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.placement import place
from megatron_gopd.plan.sync import sent_bytes, sync_seconds

SERVERS = ("rollout.engine=sglang", "rollout.sglang.sync=distributed", "rollout.sglang.urls=[http://away:30000]")
LARGE = ("student.model=examples/models/Qwen3-30B-A3B", *SERVERS)
H100 = machine("h100")


@pytest.fixture
def spread(configured):
    """spread(layout) -> the configuration of a student of 30B-A3B in this layout, and its placement on 32 GPUs."""

    def read(layout: str):
        config = configured(*LARGE, f"student.layout={layout}")
        return config, place(config, 32, 8)

    return read


def test_senders_send_the_whole_model_together(spread):
    config, where = spread("{pp: 2, ep: 4}")
    sent = sent_bytes(config, where.world)
    assert len(sent) == 8 and sum(sent.values()) == 2 * parameters(where.engine.architecture)


def test_several_senders_send_in_turn_and_put_together_at_once(spread):
    """What enters a server is the same; what is left before it begins is a bucket."""
    alone, several = sync_seconds(*spread("{tp: 4}"), H100), sync_seconds(*spread("{pp: 2, ep: 4}"), H100)
    size = 2 * parameters(spread("{tp: 4}")[1].engine.architecture)
    sent = size / (H100.chip.network_bandwidth * H100.reached.network)
    assert several <= alone
    assert sent < several


def test_a_plan_names_who_sends(spread):
    from types import SimpleNamespace

    from megatron_gopd.plan.report import _senders

    assert "GiB: 0 (1.00), 8 (2.50)." in _senders(SimpleNamespace(sent_bytes={0: 2**30, 8: 5 * 2**29}))
    assert _senders(SimpleNamespace(sent_bytes={})) == ""
