"""The student's weights in every server: updated, proven, and given again to a server that was started anew."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.rollout.broadcast import Distributed
from megatron_gopd.rollout.protocol import Exports
from megatron_gopd.rollout.updates import FromDisk, FromTensor, Update, UpdateError
from megatron_gopd.servers.client import LostRequestError, RefusedError
from megatron_gopd.servers.fingerprints import Fingerprints, checksums_of, told
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.server import Server, State
from megatron_gopd.servers.supervisor import LostServersError

LOGGER = logging.getLogger(__name__)
ATTEMPTS = 3
WAYS: dict[str, type[Update]] = {"disk": FromDisk, "distributed": Distributed, "tensor": FromTensor}


class ServerWeights:
    """Updates the servers of a pool; `pool` is None on every rank but the first."""

    def __init__(self, config: Config, pool: ServerPool | None):
        self.settings, self.pool, self._model = config.rollout.sglang, pool, config.student.model
        self._way: Update | None = WAYS[self.settings.sync](pool, config) if pool else None
        self._updates = 0

    def update(self, policy: Exports, version: int, *, only_stale: bool = False) -> None:
        """Give every server, or those without the current weights, the policy's. Collective.

        Raises:
            UserError: a server does not take them, holds others afterwards, or none is left.
        """
        verify = bool(self.settings.verify_every) and self._updates % self.settings.verify_every == 0
        for attempt in range(ATTEMPTS):
            tensors = policy.export()
            lost = on_first_with(tensors, lambda t: self._attempt(t, version, verify, only_stale))
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
        if self._way:
            self._way.close()

    def _attempt(self, tensors: Iterator[tuple[str, Tensor]], version: int, verify: bool, only_stale: bool) -> str:
        """On rank 0; "" when all went well, else which servers were lost: they are up again, with weights of old."""
        servers = self.pool.answering(only_stale)
        fingerprints = Fingerprints() if verify else None
        with self.pool.quiet(servers):
            try:
                self._way.send(fingerprints.of_passing(tensors) if verify else tensors, servers, version)
            except UpdateError as error:
                lost = error.problems
                self.pool.withdraw(servers)  # any of them may hold some of the new weights, and some of the old
            else:
                lost = self._prove(servers, fingerprints) if verify else {}
        for server, why in lost.items():
            LOGGER.warning("update of weights: %s: %s", server, why)
        self.pool.recover(lost)
        for server in servers if not lost else ():  # else none is left out of the next attempt
            if server.state is State.STALE:
                self.pool.admit(server)
        return "; ".join(lost.values())

    def _prove(self, servers: list[Server], fingerprints: Fingerprints) -> dict[Server, str]:
        lost: dict[Server, str] = {}
        for server in servers:
            try:
                theirs = self.pool.background.run(checksums_of(server.client, self.settings.sync_timeout_s))
            except LostRequestError as error:
                lost[server] = str(error)
                continue
            except RefusedError as error:
                raise UserError(
                    f"{error}, so that the server's weights cannot be proven to be the student's; "
                    f"rollout.sglang.verify_every: 0 does without"
                ) from None
            if theirs is None:
                LOGGER.info("%s: its checksums cannot be compared with the student's weights", server)
            elif differing := fingerprints.differences(theirs):
                raise UserError(
                    f"after an update, {server} does not hold the student's weights: {told(differing)} differ. "
                    f"Is it a server of student.model ({self._model}), in its dtype, that nobody else updates?"
                )
        return lost


def on_first_with(tensors: Iterator[tuple[str, Tensor]], function) -> str:
    """on_first(function of tensors), while the other ranks draw `tensors` along: an export is collective."""

    def consume():
        with contextlib.ExitStack() as rest:
            rest.callback(_drain, tensors)  # also after a failure: the others wait in the export
            return function(tensors)

    if not is_first():
        _drain(tensors)
    return on_first(consume)


def _drain(tensors: Iterator[tuple[str, Tensor]]) -> None:
    for _ in tensors:
        pass
