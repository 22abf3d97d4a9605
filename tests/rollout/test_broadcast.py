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
from megatron_gopd.rollout import sender as senders
from megatron_gopd.rollout import weights_group
from megatron_gopd.rollout.broadcast import Distributed
from megatron_gopd.rollout.sender import Sender
from megatron_gopd.rollout.sender_handle import SenderHandle
from megatron_gopd.rollout.updates import UpdateError
from megatron_gopd.rollout.weights_group import ERROR_HANDLING

MIXED = [("odd", torch.ones(3, dtype=torch.bfloat16)), ("wide", torch.arange(2.0)), ("more", torch.zeros(1))]


@pytest.fixture
def sender(monkeypatch):
    """Of a group with one server; `.left`: how it was left."""
    made = Sender(2**20, 1.0, "127.0.0.1")
    made.left = []
    monkeypatch.setattr(made, "leave", lambda broken=False: made.left.append(broken))
    made.begin(iter(MIXED))
    yield made
    made.finish()


@pytest.fixture
def way(sender):
    """The server is asked, and does not answer; `.send()` sends the first bucket."""
    config = SimpleNamespace(rollout=SimpleNamespace(sglang=RolloutServers(sync="distributed", sync_timeout_s=1)))
    way = Distributed(SimpleNamespace(), config)
    way.posted, handle = Future(), SenderHandle(0, sender)
    way._senders = [handle]
    way.wait = lambda posted: posted.result()
    way.begin_post = lambda servers, path, bodies: way.posted
    sender.next()
    way.send = lambda: way._broadcast(handle, ["server"], {})
    return way


def test_one_that_never_begins_ends_within_the_timeout(way, sender, monkeypatch):
    """As NCCL's first: it connects, whatever is asked for."""
    monkeypatch.setattr(senders.dist, "broadcast", lambda *_, **__: threading.Event().wait())
    way.posted.set_result({})
    began = time.monotonic()
    with pytest.raises(UpdateError, match=r"broke off: no progress within 1 s \(sync_timeout_s\)"):
        way.send()
    assert time.monotonic() - began < 10
    assert sender.left == [True]


def test_one_that_never_ends_is_left_as_soon_as_a_server_is_lost(way, sender, monkeypatch):
    way.settings.sync_timeout_s = 600
    work = SimpleNamespace(is_completed=lambda: False)
    monkeypatch.setattr(senders.dist, "broadcast", lambda *_, **__: work)
    way.posted.set_exception(UpdateError({"server": "gone"}))
    with pytest.raises(UpdateError, match="gone"):
        way.send()
    assert sender.left == [True]


def test_a_bucket_is_one_tensor_in_which_every_part_is_aligned(sender, monkeypatch):
    sent = []
    work = SimpleNamespace(is_completed=lambda: True, wait=lambda: None)
    monkeypatch.setattr(senders.dist, "broadcast", lambda flat, **_: sent.append(flat) or work)
    body, is_last = sender.next()
    sender.broadcast()
    assert sender.done() and is_last
    assert body["load_format"] == "flattened_bucket" and body["names"] == ["wide", "more", "odd"]
    assert sent[0][:8].view(torch.float32).tolist() == [0.0, 1.0]
    assert sent[0][12:].view(torch.bfloat16).tolist() == [1.0, 1.0, 1.0]


def test_one_bucket_is_made_ahead_and_no_more():
    made = []
    several = Sender(1, 1.0, "127.0.0.1")
    several.begin((made.append(name) or (name, tensor)) for name, tensor in MIXED * 3)
    for taken in range(4):
        wait_until(lambda: len(made) >= taken + 2)  # a bucket is whole when the next tensor is there  # noqa: B023
        time.sleep(0.05)
        assert len(made) == taken + 2
        several.next()
    several.finish()
    assert len(made) == 9


def test_the_first_bucket_is_there_before_servers_are_paused_and_the_last_one_empties_their_caches():
    did = []

    def part(rank, buckets):
        left = [({"names": [f"{rank}.{n}"]}, n == buckets - 1) for n in range(buckets)]
        made = SimpleNamespace(broadcast=lambda: None, done=lambda: True)
        made.next = lambda: did.append(f"next of {rank}") or (left.pop(0) if left else None)
        return SenderHandle(rank, made)

    way = Distributed(SimpleNamespace(), SimpleNamespace(rollout=SimpleNamespace(sglang=RolloutServers())))
    answered = Future()
    answered.set_result({})
    way._form = lambda senders, servers: did.append("a group")
    way.begin_post = lambda servers, path, bodies: did.append((path, bodies[0])) or answered
    way.pool = SimpleNamespace(quiet=lambda servers: Noted(did))
    way.send([part(0, 2), part(4, 1), part(5, 0)], ["server"], 3)
    assert did[:4] == ["a group", "next of 0", "paused", ("/begin_weight_update", {})]
    sent = [body for path, body in (each for each in did if type(each) is tuple) if "names" in body]
    assert [(body["names"], body["flush_cache"]) for body in sent] == [
        (["0.0"], False),
        (["0.1"], False),
        (["4.0"], True),
    ]
    assert did[-2:] == [("/end_weight_update", {}), "continued"]


class Noted:
    def __init__(self, did: list):
        self.did = did

    def __enter__(self):
        self.did.append("paused")

    def __exit__(self, *_):
        self.did.append("continued")


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_torch_s_own_timeout_comes_long_after_ours(sender):
    assert sender._limit.total_seconds() > 2 * 1.0


def test_the_watchdog_of_a_group_leaves_this_process_alone(monkeypatch):
    monkeypatch.setenv(ERROR_HANDLING, "1")
    with weights_group._errors_left_alone():
        assert os.environ[ERROR_HANDLING] == "0"
    assert os.environ[ERROR_HANDLING] == "1"
    monkeypatch.delenv(ERROR_HANDLING)
    with weights_group._errors_left_alone():
        pass
    assert ERROR_HANDLING not in os.environ
