"""Which nodes servers stand on, and which are refused."""

from __future__ import annotations

import os
import stat

import pytest

from megatron_gopd.config.models import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.node_addresses import Node
from megatron_gopd.servers import homes
from tests.ranks import on_ranks

TWO = [Node("a", 0, "10.0.0.1"), Node("b", 4, "10.0.0.2")]


def nodes_of_ranks() -> list[Node]:
    """Of five ranks, each third on another node."""
    import torch.distributed as dist

    from megatron_gopd.node_addresses import nodes

    os.environ["SLURMD_NODENAME"] = f"node{dist.get_rank() % 3}"
    return nodes()


def test_every_node_is_known_by_its_first_rank():
    found = on_ranks(5, nodes_of_ranks)
    assert [(node.name, node.first_rank) for node in found] == [("node0", 0), ("node1", 1), ("node2", 2)]


def test_servers_stand_on_as_many_nodes_as_asked_for(monkeypatch):
    monkeypatch.setattr(homes, "nodes", lambda: TWO)
    assert homes.nodes_of_servers(Servers()) == TWO
    assert homes.nodes_of_servers(Servers(nodes=1)) == TWO[:1]
    assert homes.nodes_of_servers(Servers(urls=["http://c:1"])) == []


def test_nodes_that_differ_in_their_gpus_are_refused(monkeypatch):
    counts = [8, 8, 8, 8, 4, 4]
    monkeypatch.setattr(homes.dist, "get_world_size", lambda: len(counts))
    monkeypatch.setattr(homes.dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), counts))
    with pytest.raises(UserError, match=r"nodes with different numbers of GPUs \(a 8, b 4\)"):
        homes._refuse_unlike(TWO)
    homes._refuse_unlike(TWO[:1])


def test_the_key_is_a_file_of_one_s_own(tmp_path):
    path = homes._new_key(tmp_path / "logs")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(path.read_text()) > 30
