"""Updates of which a part fails."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from megatron_gopd.config.models import RolloutServers
from megatron_gopd.rollout.updates import InBuckets, UpdateError
from megatron_gopd.servers.http_client import LostRequestError


def test_servers_that_have_begun_are_told_to_end_where_another_is_lost():
    """Or they would refuse the next update: one is open already."""
    way = InBuckets(SimpleNamespace(), SimpleNamespace(rollout=SimpleNamespace(sglang=RolloutServers())))
    asked, answered = [], Future()
    answered.set_result({"lost": LostRequestError("gone")})
    way.begin_post = lambda servers, path, bodies: asked.append((path, servers)) or answered
    with pytest.raises(UpdateError, match="gone"):
        way.send(iter([]), ["lost", "well"], 1)
    assert asked == [("/begin_weight_update", ["lost", "well"]), ("/end_weight_update", ["lost", "well"])]
