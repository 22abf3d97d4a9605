"""A frozen model behind servers that give hidden states: the ranks that ask share out the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.config import schema
from megatron_gopd.data.packing import Row, share
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.hf_folder import all_finite
from megatron_gopd.policies.hidden_states import Held
from megatron_gopd.policies.served import ServedScorer
from megatron_gopd.ranks import is_first
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.http_client import RefusedError, naming


class ServedStates(ServedScorer):
    """Servers of one teacher or reference; a kind of server is a subclass, which says how a row is asked for."""

    def __init__(self, settings: schema.Scorer, who: str, dtype: torch.dtype):
        """`dtype`: to hold hidden states in."""
        super().__init__(settings, who, temperature=1.0)
        self.dtype = dtype
        self.hidden_size = Architecture.read(settings.model).hidden_size

    def start(self, logs: Path) -> None:
        """Start or find the servers. Collective.

        Raises:
            UserError: a server does not start or answer, holds another model, or gives no hidden states.
        """
        super().start(logs)
        if not is_first() and self.settings.server.urls:
            self._pool = self._connect(logs)

    def begin(self, rows: Sequence[Row], names: Sequence[str], starts: Tensor) -> Callable[[], Held]:
        """Ask for this rank's share of `rows`; what is returned waits for them. Every rank passes the same rows.

        Args:
            names: of the rows, in messages.
            starts: [rows] the index of each row's first response token.

        Raises:
            UserError: by what is returned: a server refuses, gives what is not a row's hidden states, or none is left.
        """
        if self._pool is None:
            return lambda: Held.nothing(self.hidden_size, self.dtype)
        mine = share([len(row) for row in rows], ranks_that_ask(self.settings, dist.get_world_size()))[dist.get_rank()]

        async def every() -> list[Tensor]:
            return await asyncio.gather(*(self._pool.ask(partial(self._ask, rows[n], names[n])) for n in mine))

        answers = self._pool.background.start(every())

        def wait() -> Held:
            pieces = [Held.nothing(self.hidden_size, self.dtype)]
            pieces += [Held(starts[n] + torch.arange(len(v)), v) for n, v in zip(mine, answers.result(), strict=True)]
            return Held.joined(pieces)

        return wait

    async def told(self, row: Row, client: SGLangClient) -> Tensor:
        """[response, h] as the server gives it. Raises LostRequestError or RefusedError."""
        raise NotImplementedError

    async def _ask(self, row: Row, name: str, client: SGLangClient) -> Tensor:
        """[response, h]. Raises LostRequestError or RefusedError."""
        with naming(f"{self.who}, {name}"):
            states = await self.told(row, client)
            if wrong := self._faults(row, states):
                raise RefusedError(f"{client.url} gave {wrong}; none can be made up")
            return states.to(self.dtype)

    def _faults(self, row: Row, states: Tensor) -> str | None:
        wanted = len(row.response_tokens), self.hidden_size
        if states.shape != wanted:
            return f"hidden states {list(states.shape)} for a response of {list(wanted)}"
        if all_finite(states):
            return None
        token = int(torch.isfinite(states).all(1).int().argmin())
        return f"hidden states that are not finite, of response token {token} first"


def ranks_that_ask(settings: schema.Scorer, world: int) -> int:
    """All, where others run the servers; rank 0 alone knows where those are that the run starts, now and anew."""
    return world if settings.server.urls else 1
