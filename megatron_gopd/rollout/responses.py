"""Whole responses of SGLang's servers, whatever becomes of a request for one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial

from megatron_gopd.rollout.sampling import Growing, Response
from megatron_gopd.servers.client import Answer, SGLangClient
from megatron_gopd.servers.http_client import naming
from megatron_gopd.servers.pool import ServerPool, Together
from megatron_gopd.servers.routed_experts import Routers

# everything that a server would otherwise take from the model's generation_config.json
PLAIN = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0} | {
    "repetition_penalty": 1.0,
    "skip_special_tokens": False,
}


class Ending:
    """By which a response under way is ended where it is, as one that has reached its limit."""

    def __init__(self):
        self.wanted = False
        self._request: tuple[SGLangClient, str] | None = None  # that is under way now

    def named(self, client: SGLangClient) -> str:
        """The name of the request for the response, or for what it lacks, that goes to `client` now."""
        self._request = client, secrets.token_hex(8)
        return self._request[1]

    async def end(self) -> None:
        """Raises LostRequestError or RefusedError. A response that has no token yet goes on."""
        self.wanted = True
        if self._request:
            client, name = self._request
            await client.abort(name)


class Responses:
    """Asks the servers of `pool`; `version_of`: the number of weights by the name that a server has for them."""

    def __init__(self, pool: ServerPool, stop_ids: Sequence[int], version_of: Callable[[str], int]):
        self._pool, self._stop_ids, self._version_of = pool, list(stop_ids), version_of

    async def whole(
        self,
        prompt: Sequence[int],
        limit: int,
        sampling: dict,
        together: Together,
        name: str,
        ending: Ending | None = None,
        routers: Routers | None = None,
    ) -> Response:
        """A response of at most `limit` tokens; what a server cut short is continued, unless that was `ending`'s.

        `routers`: of the model, where the servers are to tell which experts they chose.

        Raises UserError: a server refuses it, with `name`, or none is left.
        """
        response, aged = Growing(), False

        async def generate(tokens: list[int], sampling: dict, client: SGLangClient) -> Answer:
            called = {"rid": ending.named(client)} if ending else {}
            with naming(name):
                return await client.generate(tokens, sampling, routers, response.routed, **called)

        while len(response.tokens) < limit and not response.finished and not aged:
            left = {"max_new_tokens": limit - len(response.tokens), "stop_token_ids": self._stop_ids}
            tokens = [*prompt, *response.tokens]
            answer = await self._pool.ask(partial(generate, tokens, PLAIN | sampling | left), together)
            response.tokens += answer.tokens
            response.logprobs += answer.logprobs
            response.versions += [(self._version_of(weights), count) for weights, count in answer.versions]
            response.routed_experts += [] if answer.routed_experts is None else [answer.routed_experts]
            response.finished = answer.finish == "stop"
            aged = answer.finish == "abort" and ending is not None and ending.wanted
        return response.response(ended_by_age=aged)
