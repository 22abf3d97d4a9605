"""What a broadcast of weights does when the other side does not take part; torch's own calls are stood in for."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch

from megatron_gopd.config.models import RolloutServers
from megatron_gopd.rollout import broadcast
from megatron_gopd.rollout.broadcast import ERROR_HANDLING, Distributed
from megatron_gopd.rollout.updates import UpdateError

MIXED = [("odd", torch.ones(3, dtype=torch.bfloat16)), ("wide", torch.arange(2.0)), ("more", torch.zeros(1))]


@pytest.fixture
def way(monkeypatch):
    """A group of two, with one server, which is asked and does not answer."""
    config = SimpleNamespace(rollout=SimpleNamespace(sglang=RolloutServers(sync="distributed", sync_timeout_s=1)))
    way = Distributed(SimpleNamespace(), config)
    way._group, way.left, way.bodies, way.posted = object(), [], [], Future()
    way.wait = lambda posted: posted.result()
    way.begin_post = lambda servers, path, bodies: way.bodies.append(bodies[0]) or way.posted
    monkeypatch.setattr(way, "_leave", lambda broken=False: way.left.append(broken))
    return way


def test_one_that_never_begins_ends_within_the_timeout(way, monkeypatch):
    """As NCCL's first: it connects, whatever is asked for."""
    monkeypatch.setattr(broadcast.dist, "broadcast", lambda *_, **__: threading.Event().wait())
    way.posted.set_result({})
    began = time.monotonic()
    with pytest.raises(UpdateError, match=r"broke off: no progress within 1 s \(sync_timeout_s\)"):
        way.send_bucket(MIXED[:1], ["server"], {})
    assert time.monotonic() - began < 10
    assert way.left == [True]


def test_one_that_never_ends_is_left_as_soon_as_a_server_is_lost(way, monkeypatch):
    way.settings.sync_timeout_s = 600
    work = SimpleNamespace(is_completed=lambda: False)
    monkeypatch.setattr(broadcast.dist, "broadcast", lambda *_, **__: work)
    way.posted.set_exception(UpdateError({"server": "gone"}))
    with pytest.raises(UpdateError, match="gone"):
        way.send_bucket(MIXED[:1], ["server"], {})
    assert way.left == [True]


def test_a_bucket_is_one_tensor_in_which_every_part_is_aligned(way, monkeypatch):
    sent = []
    work = SimpleNamespace(is_completed=lambda: True, wait=lambda: None)
    monkeypatch.setattr(broadcast.dist, "broadcast", lambda flat, **_: sent.append(flat) or work)
    way.posted.set_result({})
    way.send_bucket(list(MIXED), ["server"], {})
    (body,), (flat,) = way.bodies, sent
    assert body["load_format"] == "flattened_bucket" and body["names"] == ["wide", "more", "odd"]
    assert flat[:8].view(torch.float32).tolist() == [0.0, 1.0]
    assert flat[12:].view(torch.bfloat16).tolist() == [1.0, 1.0, 1.0]


def test_torch_s_own_timeout_comes_long_after_ours(way):
    assert way._limit.total_seconds() > 2 * way.settings.sync_timeout_s


def test_the_watchdog_of_a_group_leaves_this_process_alone(monkeypatch):
    monkeypatch.setenv(ERROR_HANDLING, "1")
    with broadcast._errors_left_alone():
        assert os.environ[ERROR_HANDLING] == "0"
    assert os.environ[ERROR_HANDLING] == "1"
    monkeypatch.delenv(ERROR_HANDLING)
    with broadcast._errors_left_alone():
        pass
    assert ERROR_HANDLING not in os.environ
