"""Weights by broadcast, to servers on this host or on others."""

from __future__ import annotations

import secrets
import socket
import time
from concurrent.futures import Future
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.rollout.updates import InBuckets, UpdateError
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.server import Server


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
        sizes = [self._ranks_of(server) for server in servers]
        self._name = f"megatron-gopd-{secrets.token_hex(4)}"
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        limit = timedelta(seconds=self.settings.sync_timeout_s)
        # listens on every address of this host, at a port that the system chooses
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=limit, wait_for_workers=False)
        about = {"master_port": store.port, "world_size": 1 + sum(sizes), "group_name": self._name, "backend": backend}
        bodies = [
            about | {"master_address": _address_towards(server.url), "rank_offset": 1 + sum(sizes[:i])}
            for i, server in enumerate(servers)
        ]
        posted = self.begin_post(servers, "/init_weights_update_group", bodies)
        try:
            self._group = _join(store, backend, about["world_size"], self._name, limit)
        except (RuntimeError, TimeoutError) as error:
            self.wait(posted)
            raise UpdateError(dict.fromkeys(servers, f"no group with the servers: {error}")) from None
        self.wait(posted)
        self._members = members

    def send_bucket(self, bucket: list[tuple[str, Tensor]], servers: list[Server], last: dict) -> None:
        body = {
            "names": [name for name, _ in bucket],
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
            "shapes": [list(tensor.shape) for _, tensor in bucket],
            "group_name": self._name,
        }
        posted = self.begin_post(servers, "/update_weights_from_distributed", [body | last] * len(servers))
        try:
            for _, tensor in bucket:
                self._broadcast(tensor, posted)
        except RuntimeError as error:  # gloo's and NCCL's, for a peer that is gone
            self._leave()
            self.wait(posted)
            raise UpdateError(dict.fromkeys(servers, f"the broadcast to the servers broke off: {error}")) from None
        except UpdateError:
            self._leave()
            raise
        self.wait(posted)

    def _broadcast(self, tensor: Tensor, posted: Future) -> None:
        """Send, but stop waiting as soon as a server has answered that it does not take part."""
        work = dist.broadcast(tensor.contiguous(), src=0, group=self._group, async_op=True)
        deadline = time.monotonic() + self.settings.sync_timeout_s
        while not work.is_completed():
            if posted.done():
                self.wait(posted)
            if time.monotonic() > deadline:
                raise RuntimeError(f"no progress within {self.settings.sync_timeout_s:g} s (sync_timeout_s)")
            time.sleep(0.0005)
        work.wait()

    def _ranks_of(self, server: Server) -> int:
        about = self.about(server)
        return about.get("tp_size", 1) * about.get("pp_size", 1)

    def _leave(self) -> None:
        """Closing this side's connections is what frees a server that waits for a broadcast."""
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self._members, self._group = [], None

    def close(self) -> None:
        self._leave()


def _address_towards(url: str) -> str:
    """This host's address on the network that leads to `url`: where a server there can reach it."""
    there = urlsplit(url)
    family, kind, protocol, _, address = socket.getaddrinfo(there.hostname, there.port or 80, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # of a datagram socket: chooses the route, sends nothing
        return probe.getsockname()[0]


def _join(store: dist.TCPStore, backend: str, size: int, name: str, limit: timedelta) -> dist.ProcessGroup:
    """Rank 0 of a group beside the job's own; made as SGLang makes its side (init_custom_process_group)."""
    keys = dist.PrefixStore(name, store)
    group, _ = c10d._new_process_group_helper(size, 0, [], dist.Backend(backend), keys, group_name=name, timeout=limit)
    c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    return group
