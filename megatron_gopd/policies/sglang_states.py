"""Hidden states of a frozen model behind SGLang servers, which give a row whole or are refused."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megatron_gopd.config.models import WHOLE_STATES
from megatron_gopd.data.packing import Row
from megatron_gopd.policies.served_model import refuse_unlike
from megatron_gopd.policies.served_states import ServedStates
from megatron_gopd.policies.target_heads import lm_head
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.hidden_states import hidden_states, refusal_of_settings
from megatron_gopd.servers.http_client import RefusedError

PROVED = 64  # tokens of a proof
UNLIKE = 0.25  # nats a token, on average: bf16 alone is off by some hundredths


class SGLangStates(ServedStates):
    """Prompts are asked about too: a server that leaves out what it has seen leaves out rows."""

    REQUESTS = 8  # an answer of a thousand tokens is tens of megabytes of JSON
    OPTIONS = WHOLE_STATES

    async def told(self, row: Row, client: SGLangClient) -> Tensor:
        """See ServedStates.told. A token's row predicts the next, so that the response's last is not asked about."""
        tokens = [*map(int, row.prompt_tokens), *map(int, row.response_tokens)][:-1]
        return (await hidden_states(client, tokens, self.hidden_size))[len(row.prompt_tokens) - 1 :]

    async def _refuse_another(self, client: SGLangClient) -> None:
        await super()._refuse_another(client)
        if wrong := refusal_of_settings(await client.get("/server_info")):
            raise RefusedError(f"{client.url} {wrong}")
        head = lm_head(self.settings.model).to(getattr(torch, self.settings.dtype))
        tokens = [n % len(head) for n in range(1, PROVED + 1)]
        for _ in range(2):  # a server that remembers them gives fewer the second time
            states = await hidden_states(client, tokens, self.hidden_size)
        if states.shape[1] != self.hidden_size:
            wrong = [f"hidden_size: {self.hidden_size} here, {states.shape[1]} there"]
            refuse_unlike(wrong, self.settings, self.who, client.url, "hidden states")
        told = await client.score(tokens[:1], tokens[1:])
        if not (apart := np.abs(_logprobs(states, head, tokens) - told).mean()) < UNLIKE:  # NaN is not, either
            raise RefusedError(
                f"{client.url} gives hidden states that do not belong to the LM head of {self.settings.model}: the "
                f"log-probs that they make differ from its own by {apart:.3g} nats a token; name the right server, or "
                f"the right model"
            )


def _logprobs(states: Tensor, head: Tensor, tokens: list[int]) -> np.ndarray:
    """Of every token but the first, nats."""
    law = (states[:-1].to(head.dtype) @ head.T).float().log_softmax(-1)
    return law.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()
