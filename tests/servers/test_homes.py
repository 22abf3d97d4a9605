"""Which nodes servers stand on, and which are refused."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_gopd.config.models import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.nodes import Node
from megatron_gopd.servers import homes, launch

TWO = [Node("a", (0, 1, 2, 3), "10.0.0.1", frozenset()), Node("b", (4, 5), "10.0.0.2", frozenset())]


def test_servers_stand_on_as_many_nodes_as_asked_for(monkeypatch):
    monkeypatch.setattr(homes.Nodes, "of_job", lambda: SimpleNamespace(all=TWO))
    assert homes.nodes_of_servers("key", Servers()) == TWO
    assert homes.nodes_of_servers("key", Servers(nodes=1)) == TWO[:1]
    assert homes.nodes_of_servers("key", Servers(urls=["http://c:1"])) == []


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


def test_servers_of_one_node_want_a_key_too(one_rank, tmp_path):
    """Whoever else uses the machine reaches its loopback."""
    (here,) = homes.Homes("key", Servers(), tmp_path).each
    assert len(here.token) > 30
    with_key, without = (
        homes.Homes("key", Servers(), tmp_path),
        homes.Homes("key", Servers(urls=["http://c:1"]), tmp_path),
    )
    assert with_key.each[0].token != here.token and without.each[0].token is None


def test_the_key_is_no_word_of_the_command(one_rank, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(launch, "ServerProcess", lambda words, environment, log: started.append((words, environment)))
    (here,) = homes.Homes("key", Servers(), tmp_path).each
    asyncio.run(here.start(launch.Launch("model", "float32", {}, None, str(tmp_path / "log"))))
    ((words, environment),) = started
    assert here.token not in f"{words} {environment}"
    (file,) = (word for word in words if ".key-" in word)
    assert Path(file).read_text() == here.token
