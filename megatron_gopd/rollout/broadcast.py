"""Weights by broadcast, to servers on this host or on others, each part by a rank that has it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from urllib.parse import urlsplit

import torch

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.rollout.sender import Head
from megatron_gopd.rollout.sender_handle import SenderHandle
from megatron_gopd.rollout.updates import InBuckets, UpdateError
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.server import Server

Turn = tuple[SenderHandle, Head]


class Distributed(InBuckets):
    """Each sender has a process group with every server: NCCL on GPUs, gloo elsewhere. Rank 0 says whose turn it is.

    One bucket is under way at a time: a server takes one request after the other, and two of them that took those of
    different senders first would wait for each other.
    """

    def __init__(self, pool: ServerPool, config: Config):
        super().__init__(pool, config)
        self._members, self._run_of_groups = [], ""
        self._senders: list[SenderHandle] = []

    def send(self, senders: Sequence[SenderHandle], servers: list[Server], version: int) -> None:
        """`senders` have begun to make their buckets; the first is there before the servers are paused."""
        self._form(senders, servers)
        turns = iter(senders)
        ahead = _first(turns)
        with self.opened(servers):
            while ahead:
                sender, (body, is_last) = ahead
                following = _first(turns) if is_last else None
                about = self.about(version, is_last=is_last and following is None)
                self._broadcast(sender, servers, body | about | {"group_name": self._name_of(sender)})
                ahead = following if is_last else (sender, sender("next"))

    def _form(self, senders: Sequence[SenderHandle], servers: list[Server]) -> None:
        """A group of each sender with `servers`, one after the other, unless the last ones were of the same."""
        # one that was away has left, whatever its URL
        members = [*(sender.rank for sender in senders), *((server, server.lives) for server in servers)]
        if members == self._members:
            return
        self._members, self._run_of_groups = [], secrets.token_hex(4)
        self._senders = list(senders)
        for sender in senders:
            self._join(sender, servers)
        self._members = members

    def _join(self, sender: SenderHandle, servers: list[Server]) -> None:
        sizes = [self.told[server].ranks for server in servers]
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        port, addresses = sender("open", [urlsplit(server.url).hostname for server in servers], backend)
        name = self._name_of(sender)
        about = {"master_port": port, "world_size": 1 + sum(sizes), "group_name": name, "backend": backend}
        bodies = [
            about | {"master_address": address, "rank_offset": 1 + sum(sizes[:i])}
            for i, address in enumerate(addresses)
        ]
        posted = self.begin_post(servers, "/init_weights_update_group", bodies)
        sender("join", about["world_size"], name)
        try:
            self._until(posted, sender)
        except RuntimeError as error:
            self.wait(posted)
            raise UpdateError(dict.fromkeys(servers, f"no group with the servers: {error}")) from None
        self.wait(posted)

    def _broadcast(self, sender: SenderHandle, servers: list[Server], body: dict) -> None:
        posted = self.begin_post(servers, "/update_weights_from_distributed", [body] * len(servers))
        try:
            sender("broadcast")
            self._until(posted, sender)
        except RuntimeError as error:  # gloo's and NCCL's, for a peer that is gone
            self._leave()
            self.wait(posted)
            raise UpdateError(dict.fromkeys(servers, f"the broadcast to the servers broke off: {error}")) from None
        except (UpdateError, UserError):
            self._leave()
            raise
        self.wait(posted)

    def _until(self, posted: Future, sender: SenderHandle) -> None:
        """Until what the sender has begun is done.

        Raises:
            RuntimeError: of gloo or NCCL; or it is not done within the timeout.
            UpdateError, UserError: a server has answered that it takes no part.
        """
        deadline = time.monotonic() + self.settings.sync_timeout_s
        while not sender("done"):
            if posted.done():
                self.wait(posted)
            if time.monotonic() > deadline:
                raise RuntimeError(f"no progress within {self.settings.sync_timeout_s:g} s (sync_timeout_s)")

    def _leave(self) -> None:
        for sender in self._senders:
            sender("leave", broken=True)
        self._members, self._senders = [], []

    def _name_of(self, sender: SenderHandle) -> str:
        return f"megatron-gopd-{self._run_of_groups}-{sender.rank}"


def _first(senders: Iterator[SenderHandle]) -> Turn | None:
    """The next sender that has a bucket, and that; None: none has."""
    return next(((sender, head) for sender in senders if (head := sender("next"))), None)
