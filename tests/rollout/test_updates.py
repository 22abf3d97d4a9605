"""Updates of which a part fails."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from megatron_gopd.config.models import RolloutServers
from megatron_gopd.rollout.updates import InBuckets, UpdateError
from megatron_gopd.servers.http_client import LostRequestError

CONFIG = SimpleNamespace(rollout=SimpleNamespace(sglang=RolloutServers()))


def test_servers_that_have_begun_are_told_to_end_where_another_is_lost():
    """Or they would refuse the next update: one is open already. What they hold is nobody's weights."""
    withdrawn = []
    pool = SimpleNamespace(quiet=contextlib.nullcontext, withdraw=withdrawn.append)
    way = InBuckets(pool, CONFIG)
    asked, answered = [], Future()
    answered.set_result({"lost": LostRequestError("gone")})
    way.begin_post = lambda servers, path, bodies: asked.append((path, servers)) or answered
    with pytest.raises(UpdateError, match="gone"), way.opened(["lost", "well"]):
        pytest.fail("it is not open")
    assert asked == [("/begin_weight_update", ["lost", "well"]), ("/end_weight_update", ["lost", "well"])]
    assert withdrawn == [["lost", "well"]]
