"""Weights by broadcast, to servers on this host or on others."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.nodes import address_towards
from megatron_gopd.rollout.updates import InBuckets, UpdateError
from megatron_gopd.servers.loop import in_a_thread
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.server import Server

POLL_S = 0.0005
ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"  # read when a group is made
Result = TypeVar("Result")


class Distributed(InBuckets):
    """A process group of rank 0 and every server: NCCL on GPUs, gloo elsewhere."""

    def __init__(self, pool: ServerPool, config: Config):
        super().__init__(pool, config)
        self._members: list[tuple[Server, int]] = []
        self._group: dist.ProcessGroup | None = None
        self._name = ""

    def prepare(self, servers: list[Server]) -> None:
        """Join a group with `servers`, unless the last one was with the same."""
        members = [(server, server.lives) for server in servers]  # one that was away has left, whatever its URL
        if members == self._members:
            return
        self._leave()
        sizes = [self.told[server].ranks for server in servers]
        self._name = f"megatron-gopd-{secrets.token_hex(4)}"
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        # listens on every address of this host, at a port that the system chooses
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=self._limit, wait_for_workers=False)
        about = {"master_port": store.port, "world_size": 1 + sum(sizes), "group_name": self._name, "backend": backend}
        bodies = [
            about | {"master_address": _address_towards(server.url), "rank_offset": 1 + sum(sizes[:i])}
            for i, server in enumerate(servers)
        ]
        posted = self.begin_post(servers, "/init_weights_update_group", bodies)
        try:
            self._group = self._until(
                posted, lambda: _join(store, backend, about["world_size"], self._name, self._limit)
            )
        except RuntimeError as error:
            self.wait(posted)
            raise UpdateError(dict.fromkeys(servers, f"no group with the servers: {error}")) from None
        self.wait(posted)
        self._members = members

    def send_bucket(self, bucket: list[tuple[str, Tensor]], servers: list[Server], last: dict) -> None:
        bucket.sort(key=lambda named: -named[1].itemsize)  # SGLang wants each where its dtype is aligned
        flat = torch.cat([tensor.flatten().view(torch.uint8) for _, tensor in bucket])
        body = {
            "names": [name for name, _ in bucket],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
            "group_name": self._name,
            "load_format": "flattened_bucket",
        }
        posted = self.begin_post(servers, "/update_weights_from_distributed", [body | last] * len(servers))
        try:
            self._broadcast(flat, posted)
        except RuntimeError as error:  # gloo's and NCCL's, for a peer that is gone
            self._leave(broken=True)
            self.wait(posted)
            raise UpdateError(dict.fromkeys(servers, f"the broadcast to the servers broke off: {error}")) from None
        except (UpdateError, UserError):
            self._leave(broken=True)
            raise
        self.wait(posted)

    def _broadcast(self, flat: Tensor, posted: Future) -> None:
        stream = torch.cuda.current_stream() if flat.is_cuda else None

        def begin() -> dist.Work:
            with torch.cuda.stream(stream):  # a thread begins on the first GPU
                return dist.broadcast(flat, src=0, group=self._group, async_op=True)

        # NCCL connects in the first broadcast, and not before: the servers do so in theirs
        self._until(posted, begin, lambda work: work.is_completed()).wait()

    def _until(self, posted: Future, begin: Callable[[], Result], done=lambda result: True) -> Result:
        """What `begin`, which may block, returns, as soon as it is `done`.

        Raises:
            RuntimeError: of gloo or NCCL; or it is not done within the timeout.
            UpdateError, UserError: a server has answered that it takes no part.
        """
        begun, deadline = in_a_thread(begin), time.monotonic() + self.settings.sync_timeout_s
        while not (begun.done() and done(begun.result())):
            if posted.done():
                self.wait(posted)
            if time.monotonic() > deadline:
                raise RuntimeError(f"no progress within {self.settings.sync_timeout_s:g} s (sync_timeout_s)")
            time.sleep(POLL_S)
        return begun.result()

    @property
    def _limit(self) -> timedelta:
        """Of torch's own, which ends the whole process: what waits here has given up long before."""
        return timedelta(seconds=2 * self.settings.sync_timeout_s + 60)

    def _leave(self, *, broken: bool = False) -> None:
        """Closing this side's connections is what frees a server that waits for a broadcast."""
        if self._group is not None:
            # to destroy a group of NCCL is to wait for what was begun in it
            stuck = broken and dist.get_backend(self._group) == "nccl"
            (c10d._abort_process_group if stuck else dist.destroy_process_group)(self._group)
        self._members, self._group = [], None

    def close(self) -> None:
        self._leave()


def _address_towards(url: str) -> str:
    """Where a server at `url` can reach this host."""
    there = urlsplit(url)
    return address_towards(there.hostname, there.port or 80)


def _join(store: dist.TCPStore, backend: str, size: int, name: str, limit: timedelta) -> dist.ProcessGroup:
    """Rank 0 of a group beside the job's own; made as SGLang makes its side (init_custom_process_group)."""
    keys = dist.PrefixStore(name, store)
    with _errors_left_alone():
        group, _ = c10d._new_process_group_helper(
            size, 0, [], dist.Backend(backend), keys, group_name=name, timeout=limit
        )
    c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    return group


@contextlib.contextmanager
def _errors_left_alone() -> Iterator[None]:
    """NCCL's watchdog of a group that is made within the block does not end this process for a peer that is gone: a
    server is started anew."""
    before = os.environ.get(ERROR_HANDLING)
    os.environ[ERROR_HANDLING] = "0"
    try:
        yield
    finally:
        del os.environ[ERROR_HANDLING]
        if before is not None:
            os.environ[ERROR_HANDLING] = before
