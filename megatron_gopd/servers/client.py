"""What is asked of one SGLang server, and of our own scorer. Source of the API: sglang/srt/entrypoints/http_server.py,
0.5.23."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_gopd.servers import replies
from megatron_gopd.servers.http_client import (
    HEALTH_TIMEOUT_S,
    MOST_BYTES,
    HttpClient,
    LostRequestError,
    RefusedError,
    message_of,
)
from megatron_gopd.servers.routed_experts import Routers
from megatron_gopd.servers.top_logprobs import Scored, top_logprobs

SCORED_AT_A_TIME = 4096  # response tokens of one request
BYTES_OF_TOP = 64  # of a reply, for each of the most likely tokens that are asked for


@dataclass
class Answer:
    """A sampled response, as far as it came."""

    tokens: list[int]
    logprobs: list[float]  # nats, at the sampling temperature, before top-p and top-k
    finish: str  # stop, length, or abort: cut short by the server
    versions: list[tuple[str, int]]  # the weights' names, and how many tokens each sampled, in order
    routed_experts: np.ndarray | None = None  # [positions from the first that was asked about, layers, top_k]

    def __len__(self) -> int:
        return len(self.tokens)


class SGLangClient(HttpClient):
    """One server by its URL. Every method raises LostRequestError or RefusedError."""

    async def flush(self) -> str | None:
        """Empty its cache, which only an idle server does; what it says otherwise. Raises LostRequestError."""
        status, said = await self._request("POST", "/flush_cache", HEALTH_TIMEOUT_S)
        return None if status == 200 else f"{status} {message_of(said)}"

    async def generate(
        self,
        tokens: Sequence[int],
        sampling: dict,
        routers: Routers | None = None,
        first: int = 0,
        *,
        rid: str | None = None,
    ) -> Answer:
        """Sample one response; `sampling` are SGLang's sampling_params, `rid` is the name by which to abort it.

        `routers`: of the model, where the answer is to tell which experts they chose, from position `first` on. One
        that was cut short may not tell.
        """
        body = {"input_ids": list(tokens), "sampling_params": sampling, "return_logprob": True, "logprob_start_len": -1}
        body |= {"rid": rid} if rid else {}
        most = {}
        if routers:
            body |= routers.asked(first)
            most["most"] = MOST_BYTES + routers.reply_bytes(len(tokens) + sampling["max_new_tokens"] - first)
        reply = await self.post_for(replies.Sampled, "/generate", body, **most)
        about = reply.meta_info
        finish = about.finish_reason
        if finish.type == "abort" and finish.status_code == 400:
            raise RefusedError(f"{self.url} refused a prompt of {len(tokens)} tokens: {finish.message}")
        if finish.type == "abort" and not 0 < len(reply.output_ids) == len(about.output_token_logprobs):
            raise LostRequestError(f"{self.url} gave a request up: {finish.message}")
        with self.checking():
            logprobs = replies.sampled_logprobs(reply, sampling.get("max_new_tokens"), self.vocab_size)
            versions = replies.sampled_versions(reply)
            told = routers and (finish.type != "abort" or about.routed_experts is not None)
            positions = len(tokens) + len(reply.output_ids) - 1 - first  # nothing is computed of the last token
            chosen = routers.read(about.routed_experts, positions) if told else None
        return Answer(reply.output_ids, logprobs.tolist(), finish.type, versions, chosen)

    async def abort(self, rid: str) -> None:
        """Have a response end where it is: the request for it is answered. Nothing happens where it has ended."""
        await self._good("POST", "/abort_request", HEALTH_TIMEOUT_S, json={"rid": rid})

    async def score_by_ours(self, asked: dict) -> np.ndarray:
        """As score, of a scorer of our own, at the temperature that `asked`, the body, names."""
        reply = await self.post_for(replies.Logprobs, "/score", asked)
        with self.checking():
            return replies.given_logprobs(reply, len(asked["response_tokens"]))

    async def support_by_ours(self, asked: dict) -> np.ndarray:
        """As score_by_ours, of the `ids` [response, k] that `asked` names."""
        reply = await self.post_for(replies.LogprobRows, "/support", asked)
        with self.checking():
            return replies.given_rows(reply, len(asked["ids"]), len(asked["ids"][0]))

    async def score(self, prompt: Sequence[int], response: Sequence[int] | np.ndarray) -> np.ndarray:
        """Log-prob of every response token at temperature 1: [response] float32, nats."""
        return (await self.score_top(prompt, response, 0)).logprobs

    async def score_top(self, prompt: Sequence[int], response: Sequence[int] | np.ndarray, top_k: int) -> Scored:
        """As score, and the log-probs of the `top_k` tokens most likely in each place.

        A long response is asked for in pieces, each of which finds what comes before it in the server's cache.
        """
        response, pieces = np.asarray(response).tolist(), []  # JSON knows no array
        for first in range(0, len(response), SCORED_AT_A_TIME):
            piece = response[first : first + SCORED_AT_A_TIME]
            pieces.append(await self._score_piece([*prompt, *response[:first]], piece, top_k))
        return Scored(*map(np.concatenate, zip(*pieces, strict=True)))

    async def _score_piece(self, before: Sequence[int], piece: Sequence[int], top_k: int) -> Scored:
        # from one position before the piece, which predicts its first token; from 0 on, nothing could be taken from
        # the cache, and every token before it would cost a row of the vocabulary's size
        body = {
            "input_ids": [*before, *piece],
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": len(before) - 1,
        }
        if top_k:
            flat = {"return_flat_raw_top_logprobs": True, "return_flat_raw_top_logprobs_b64": True}
            body |= {"top_logprobs_num": top_k} | flat
        most = MOST_BYTES + BYTES_OF_TOP * top_k * len(piece)
        about = (await self.post_for(replies.Scored, "/generate", body, most)).meta_info
        if about.finish_reason.type == "abort":
            raise LostRequestError(f"{self.url} gave a request up: {about.finish_reason.message}")
        with self.checking():
            given = replies.scored_logprobs(about.input_token_logprobs[1:], piece, self.vocab_size)
            return Scored(given, *top_logprobs(vars(about) | about.model_extra, len(piece), top_k, self.vocab_size))
