"""That servers hold the student's weights after an update: by checksums that can be compared, else by log-probs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_gopd.config import Config
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.rollout import probes
from megatron_gopd.servers.fingerprints import Fingerprints, checksums_of, told
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.server import Server

Lost = dict[Server, str]  # and why


class Proofs:
    """Asks the servers of a pool, on rank 0. Every method raises UserError: a server holds other weights."""

    def __init__(self, config: Config, pool: ServerPool, rows: Sequence[Row]):
        self._timeout_s, self._model = config.rollout.sglang.sync_timeout_s, config.student.model
        self._pool, self._rows, self._ceiling = pool, rows, config.rollout.start_logprob_abs_diff
        self._before: probes.Logprobs | None = None  # the rows', at the last proof

    def by_checksums(self, servers: Sequence[Server], fingerprints: Fingerprints) -> Lost:
        def wrong(server: Server) -> str | None:
            theirs = self._pool.background.run(checksums_of(server.client, self._timeout_s))
            differing = fingerprints.differences(theirs)
            return f"{told(differing)} differ" if differing else None

        return self._of(servers, wrong)

    def by_logprobs(self, servers: Sequence[Server], ours: probes.Logprobs) -> Lost:
        """`ours`: of the rows, by the student."""

        def wrong(server: Server) -> str | None:
            asked = probes.scores_of(server.client, self._rows, self._timeout_s)
            return probes.problem(self._pool.background.run(asked), ours, self._before, self._ceiling)

        lost = self._of(servers, wrong)
        self._before = self._before if lost else ours
        return lost

    def _of(self, servers: Sequence[Server], wrong: Callable[[Server], str | None]) -> Lost:
        lost: Lost = {}
        for server in servers:
            try:
                found = wrong(server)
            except LostRequestError as error:
                lost[server] = str(error)
                continue
            except RefusedError as error:
                raise UserError(
                    f"{error}, so that the server's weights cannot be proven to be the student's; "
                    f"rollout.sglang.verify_every: 0 does without"
                ) from None
            if found:
                raise UserError(
                    f"after an update, {server} does not hold the student's weights: {found}. Is it a server of "
                    f"student.model ({self._model}), in its dtype, with options that leave its distribution as it is, "
                    f"that nobody else updates?"
                )
        return lost
