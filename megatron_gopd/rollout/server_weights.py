"""The student's weights in every server: updated, proven, and given again to a server that was started anew."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.nodes import Nodes
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.rollout import probes
from megatron_gopd.rollout.broadcast import Distributed
from megatron_gopd.rollout.from_tensor import FromTensor, pickled
from megatron_gopd.rollout.proofs import Lost, Proofs
from megatron_gopd.rollout.protocol import Exports
from megatron_gopd.rollout.sender import Sender
from megatron_gopd.rollout.sender_handle import OVER, SenderHandle, serve
from megatron_gopd.rollout.shared_gpus import homes_of
from megatron_gopd.rollout.updates import FromDisk, Told, Update, UpdateError
from megatron_gopd.rollout.weights_folder import WeightsFolder
from megatron_gopd.servers.fingerprints import Fingerprints
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.server import Server, State
from megatron_gopd.servers.supervisor import LostServersError

LOGGER = logging.getLogger(__name__)
ATTEMPTS = 3
WAYS: dict[str, type[Update]] = {"disk": FromDisk, "distributed": Distributed, "tensor": FromTensor}


class Chosen(NamedTuple):
    """A server that is updated."""

    number: int  # in the pool
    told: Told


class ServerWeights:
    """Updates the servers of a pool; `pool` is None on every rank but the first."""

    def __init__(self, config: Config, pool: ServerPool | None, rows: Sequence[Row], writers: list[int]):
        """Collective.

        Args:
            rows: scored by servers and policy where checksums cannot be compared.
            writers: the first rank of each node with servers; rank 0 where others run them.
        """
        self.settings, self.pool, self._rows = config.rollout.sglang, pool, rows
        self._sender: Sender | None = None  # of `distributed`, on every rank
        if self.settings.sync == "distributed":
            home = Nodes.of_job().all[0].address
            self._sender = Sender(self.settings.bucket_bytes, self.settings.sync_timeout_s, home)
        self._way: Update | None = WAYS[self.settings.sync](pool, config) if pool else None
        self._proofs = Proofs(config, pool, rows) if pool else None
        self._homes = homes_of(self.settings) if self.settings.sync == "tensor" and torch.cuda.is_available() else None
        self._folder = WeightsFolder(config, writers) if self.settings.sync == "disk" else None
        # the ranks that do something with the tensors, of which the others draw the names only; None: all do
        self._receivers = writers if self.settings.sync == "disk" else None
        self._updates = 0

    def update(self, policy: Exports, version: int, *, only_stale: bool = False) -> None:
        """Give every server, or those without the current weights, the policy's. Collective.

        Raises:
            UserError: a server does not take them, holds others afterwards, or none is left.
        """
        verify = bool(self.settings.verify_every) and self._updates % self.settings.verify_every == 0
        for attempt in range(ATTEMPTS):
            lost = self._attempt(policy, version, verify, only_stale)
            if not lost:
                break
            if attempt == ATTEMPTS - 1:
                raise LostServersError(f"the rollout servers were lost in {ATTEMPTS} updates in a row: {lost}")
        self._updates += not only_stale

    def version_of(self, name: str) -> int:
        """Of weights that a server samples with. Raises UserError: it has them from somebody else."""
        version = self._way.version_of(name)
        if version is None:
            raise UserError(
                f"a rollout server sampled with weights {name!r}, which it does not have from this run: "
                f"somebody else updates that server; give each run servers of its own"
            )
        return version

    def close(self) -> None:
        if self._sender:
            self._sender.leave()

    def _attempt(self, policy: Exports, version: int, verify: bool, only_stale: bool) -> str:
        """ "" when all went well, else which servers were lost: they are up again, with weights of old. Collective."""
        chosen, lost = on_first(lambda: self._choose(only_stale))
        if lost:
            return lost
        compared = [each for each in chosen if verify and each.told.comparable]
        probed = [each for each in chosen if verify and not each.told.comparable]
        senders = policy.senders if self._sender else [0]
        fingerprints = Fingerprints() if compared and dist.get_rank() in (0, *senders) else None
        tensors = policy.export_part() if self._sender else policy.export(self._receivers)
        if fingerprints:
            tensors = fingerprints.of_passing(tensors)
        lost = self._send_drawn(tensors, senders, chosen, version)
        if not lost and compared:
            if senders != [0]:
                fingerprints = Fingerprints.gathered(fingerprints)
            lost = on_first(lambda: self._recovered(self._proofs.by_checksums(self._servers(compared), fingerprints)))
        if not lost and probed:
            ours = policy.score(self._rows, probes.TEMPERATURE)
            lost = on_first(lambda: self._recovered(self._proofs.by_logprobs(self._servers(probed), ours)))
        return lost

    def _send_drawn(
        self, tensors: Iterator[tuple[str, Tensor]], senders: list[int], chosen: list[Chosen], version: int
    ) -> str:
        if self._folder:
            with self._folder.filled(tensors) as folders:
                return on_first(lambda: self._send(folders, chosen, version))
        if self._sender:
            return self._broadcast(tensors, senders, chosen, version)
        broken: list[bool] = []
        tensors = pickled(tensors, self._homes_of(chosen), self.settings.bucket_bytes, wanted=lambda: not broken)
        send = partial(self._send, tensors, chosen, version)
        lost = on_first_with(send, partial(_drain, tensors), lambda: broken.append(True))
        if self._homes is not None:
            torch.cuda.ipc_collect()  # what servers have closed
        return lost

    def _broadcast(
        self, part: Iterator[tuple[str, Tensor]], senders: list[int], chosen: list[Chosen], version: int
    ) -> str:
        """Each of `senders` its part, as rank 0 says, while the other ranks draw along."""
        sends = dist.get_rank() in senders
        handles = [SenderHandle(rank, self._sender if rank == 0 else None) for rank in senders]
        if sends:
            self._sender.begin(part)
            if not is_first():
                serve(self._sender)

        def over() -> None:
            for handle in handles:
                handle(OVER)

        rest = self._sender.finish if sends else lambda: _drain(part)
        return on_first_with(lambda: self._send(handles, chosen, version), rest, over)

    def _choose(self, only_stale: bool) -> tuple[list[Chosen], str]:
        """The servers to update, and what they say of themselves; or which of them were lost."""
        servers = self.pool.answering(only_stale)
        try:
            return [Chosen(self.pool.servers.index(server), self._way.ask(server)) for server in servers], ""
        except UpdateError as error:
            return [], self._recovered(error.problems)

    def _homes_of(self, chosen: list[Chosen]) -> list[list[int]]:
        """The ranks that hand tensors over: those on the servers' GPUs; without GPUs, the first."""
        if self._homes is None:
            return [[0] * each.told.ranks for each in chosen]
        return [self._homes[each.number] for each in chosen]

    def _send(self, weights, chosen: list[Chosen], version: int) -> str:
        """`weights`: as Update.send takes them."""
        servers = self._servers(chosen)
        try:
            self._way.send(weights, servers, version)
        except UpdateError as error:
            return self._recovered(error.problems)
        for server in servers:
            if server.state is State.STALE:
                self.pool.admit(server)
        return ""

    def _servers(self, chosen: list[Chosen]) -> list[Server]:
        return [self.pool.servers[each.number] for each in chosen]

    def _recovered(self, lost: Lost) -> str:
        for server, why in lost.items():
            LOGGER.warning("update of weights: %s: %s", server, why)
        self.pool.recover(lost)
        return "; ".join(lost.values())


def on_first_with(
    function: Callable[[], str], rest: Callable[[], None], over: Callable[[], None] = lambda: None
) -> str:
    """on_first(function), and on every rank, also after a failure, `rest`: an export is collective, and what the first
    rank has not drawn is waited for. `over` is called on the first rank between the two.
    """

    def all_of_it() -> str:
        with contextlib.ExitStack() as after:
            after.callback(rest)
            after.callback(over)
            return function()

    if not is_first():
        rest()
    return on_first(all_of_it)


def _drain(tensors: Iterator[tuple[str, Tensor]]) -> None:
    for _ in tensors:
        pass
