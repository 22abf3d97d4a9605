"""Rank 0 and the keeper of another node's servers, in one process here; what they keep is a sleep."""

from __future__ import annotations

import asyncio
import sys
import time

import psutil
import pytest
from torch.distributed import PrefixStore, TCPStore

from megatron_gopd.errors import UserError
from megatron_gopd.servers import keeper, launch, process
from megatron_gopd.servers.keeper import Keeper, Orders
from megatron_gopd.servers.launch import Launch
from tests.servers.real_server import wait_for

SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """kept(program) -> rank 0's orders, the keeper, and what starts the program."""
    monkeypatch.setattr(process, "STOP_S", 1.0)
    monkeypatch.setattr(keeper, "LAST_ORDER_S", 0.5)
    (tmp_path / "key").write_text("secret")
    store, keepers = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False), []

    def make(program: str = SLEEPS, log: str = "log"):
        monkeypatch.setattr(launch, "command", lambda *_, **__: [sys.executable, "-c", program])
        keepers.append(Keeper(PrefixStore("b", store.clone()), "127.0.0.1", tmp_path / "key"))
        return Orders(PrefixStore("b", store.clone()), "b"), keepers[0], Launch("", "", {}, None, str(tmp_path / log))

    yield make
    for one in keepers:
        one.close()


def pid_in(log) -> int:
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"), 60)
    return int(log.read_text())


def test_a_process_is_started_and_stopped_there(kept, tmp_path):
    orders, _, what = kept()
    server, url = asyncio.run(orders.start(what))
    assert url.startswith("http://127.0.0.1:")
    pid = pid_in(tmp_path / "log")
    assert server.exit_code is None
    server.stop()
    assert server.exit_code is not None
    assert not psutil.pid_exists(pid)


def test_one_that_ends_by_itself_is_told_of(kept):
    orders, _, what = kept("print('no such model'); raise SystemExit(4)")
    server, _ = asyncio.run(orders.start(what))
    wait_for(lambda: server.exit_code is not None, 60)
    assert server.exit_code == 4
    assert server.last_words().endswith("no such model")


def test_a_log_that_the_node_cannot_write_is_told_of(kept):
    orders, _, what = kept(log="../../../../../../proc/none/log")
    with pytest.raises(UserError, match="node b cannot start a server: .*proc/none"):
        asyncio.run(orders.start(what))


def test_a_folder_that_the_node_does_not_share_is_told_of(kept, tmp_path):
    orders, _, what = kept()
    (tmp_path / "key").unlink()
    with pytest.raises(UserError, match="node b cannot start a server: .*/key is not there; set run.folder to"):
        asyncio.run(orders.start(what))


@pytest.mark.parametrize("told", [True, False])
def test_all_end_with_the_keeper_whether_rank_0_says_so_or_not(kept, tmp_path, told):
    orders, keeper_of_b, what = kept()
    server, _ = asyncio.run(orders.start(what))
    pid = pid_in(tmp_path / "log")
    if told:
        orders.give({"end": True})
    keeper_of_b.close()
    assert not psutil.pid_exists(pid)
    began = time.monotonic()
    server.stop()  # of one that is gone: at once
    assert time.monotonic() - began < 5
