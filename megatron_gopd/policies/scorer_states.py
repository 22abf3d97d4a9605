"""Hidden states of a frozen model behind scorers of our own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_gopd.data.packing import Row
from megatron_gopd.policies.identity import fingerprint
from megatron_gopd.policies.served import told_tokens
from megatron_gopd.policies.served_model import refuse_unlike
from megatron_gopd.policies.served_states import ServedStates
from megatron_gopd.ranks import on_first
from megatron_gopd.servers import wire
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.http_client import MOST_BYTES, LostRequestError, RefusedError, UnknownPathError


class ScorerStates(ServedStates):
    """Every answer names the model it is of."""

    fingerprint = ""

    def start(self, logs: Path) -> None:
        """See ServedStates.start."""
        self.fingerprint = on_first(lambda: fingerprint(self.settings.model, self.settings.dtype))
        super().start(logs)

    async def told(self, row: Row, client: SGLangClient) -> Tensor:
        """See ServedStates.told."""
        try:
            most = MOST_BYTES + len(row.response_tokens) * self.hidden_size * torch.float32.itemsize
            said = await client.post_for_bytes("/hidden", told_tokens(row), most)
            states, of_model = wire.unpacked(said)
        except UnknownPathError:
            raise UnknownPathError(_without_states(client)) from None
        except ValueError as error:
            raise LostRequestError(f"{client.url}/hidden gave {error}") from None
        if of_model != self.fingerprint:
            wrong = f"hidden states of another model than {self.settings.model}"
            raise RefusedError(f"{client.url} gave {wrong}; none can be made up")
        if states.dtype != getattr(torch, self.settings.dtype):
            wrong = f"hidden states in {states.dtype}, not in {self.settings.dtype}"
            raise RefusedError(f"{client.url} gave {wrong}; none can be made up")
        return states

    async def _refuse_another(self, client: SGLangClient) -> None:
        await super()._refuse_another(client)
        about = await client.get("/model_info")
        if "fingerprint" not in about:
            raise RefusedError(_without_states(client))
        wrong = []
        if about.get("dtype") != self.settings.dtype:
            wrong = [f"dtype: {self.settings.dtype} here, {about.get('dtype')} there"]
        elif about["fingerprint"] != self.fingerprint:
            wrong = ["another LM head"] if about["fingerprint"] else ["a Megatron checkpoint there: convert it"]
        refuse_unlike(wrong, self.settings, self.who, client.url, about.get("model_path"))


def _without_states(client: SGLangClient) -> str:
    return (
        f"{client.url} gives no hidden states, which algorithm.gradient: exact reads: it runs an older megatron-gopd; "
        f"update it there and start serve-scorer anew, or set gradient: sampled"
    )
