"""A frozen model behind servers of our own that give hidden states: every rank fetches its share of the rows."""

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
from megatron_gopd.policies.identity import fingerprint
from megatron_gopd.policies.served import ServedScorer, refuse_unlike, told_tokens
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.servers import wire
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.http_client import MOST_BYTES, LostRequestError, RefusedError, UnknownPathError, naming


class ServedStates(ServedScorer):
    """Servers of one teacher or reference. Every rank talks to them, each for other rows."""

    def __init__(self, settings: schema.Scorer, who: str, dtype: torch.dtype):
        """`dtype`: to hold hidden states in."""
        super().__init__(settings, who, temperature=1.0)
        self.dtype = dtype
        self._hidden_size = Architecture.read(settings.model).hidden_size
        self._fingerprint = ""

    def start(self, logs: Path) -> None:
        """Find the servers. Collective.

        Raises:
            UserError: a server does not answer, holds another model, or gives no hidden states.
        """
        self._fingerprint = on_first(lambda: fingerprint(self.settings.model, self.settings.dtype))
        super().start(logs)
        if not is_first():
            self._pool = self._connect(logs)

    def begin(self, rows: Sequence[Row], names: Sequence[str], starts: Tensor) -> Callable[[], Held]:
        """Ask for this rank's share of `rows`; what is returned waits for them. Every rank passes the same rows.

        Args:
            names: of the rows, in messages.
            starts: [rows] the index of each row's first response token.

        Raises:
            UserError: by what is returned: a server refuses, gives what is not a row's hidden states, or none is left.
        """
        mine = share([len(row) for row in rows], dist.get_world_size())[dist.get_rank()]

        async def every() -> list[Tensor]:
            return await asyncio.gather(*(self._pool.ask(partial(self._ask, rows[n], names[n])) for n in mine))

        answers = self._pool.background.start(every())

        def wait() -> Held:
            pieces = [Held.nothing(self._hidden_size, self.dtype)]
            pieces += [Held(starts[n] + torch.arange(len(v)), v) for n, v in zip(mine, answers.result(), strict=True)]
            return Held.joined(pieces)

        return wait

    async def _ask(self, row: Row, name: str, client: SGLangClient) -> Tensor:
        """[response, h]. Raises LostRequestError or RefusedError."""
        most = MOST_BYTES + len(row.response_tokens) * self._hidden_size * torch.float32.itemsize
        with naming(f"{self.who}, {name}"):
            try:
                said = await client.post_for_bytes("/hidden", told_tokens(row), most)
                states, of_model = wire.unpacked(said)
            except UnknownPathError:
                raise RefusedError(_without_states(client)) from None
            except ValueError as error:
                raise LostRequestError(f"{client.url}/hidden gave {error}") from None
            if wrong := self._faults(row, states, of_model):
                raise RefusedError(f"{client.url} gave {wrong}; none can be made up")
            return states.to(self.dtype)

    def _faults(self, row: Row, states: Tensor, of_model: str) -> str | None:
        wanted = len(row.response_tokens), self._hidden_size
        if of_model != self._fingerprint:
            return f"hidden states of another model than {self.settings.model}"
        if states.shape != wanted:
            return f"hidden states {list(states.shape)} for a response of {list(wanted)}"
        if states.dtype != getattr(torch, self.settings.dtype):
            return f"hidden states in {states.dtype}, not in {self.settings.dtype}"
        return None if all_finite(states) else "hidden states that are not finite"

    async def _refuse_another(self, client: SGLangClient) -> None:
        await super()._refuse_another(client)
        about = await client.get("/model_info")
        if "fingerprint" not in about:
            raise RefusedError(_without_states(client))
        wrong = []
        if about.get("dtype") != self.settings.dtype:
            wrong = [f"dtype: {self.settings.dtype} here, {about.get('dtype')} there"]
        elif about["fingerprint"] != self._fingerprint:
            wrong = ["another LM head"] if about["fingerprint"] else ["a Megatron checkpoint there: convert it"]
        refuse_unlike(wrong, self.settings, self.who, client.url, about.get("model_path"))


def _without_states(client: SGLangClient) -> str:
    return (
        f"{client.url} gives no hidden states, which algorithm.gradient: exact reads: it runs an older megatron-gopd; "
        f"update it there and start serve-scorer anew, or set gradient: sampled"
    )
