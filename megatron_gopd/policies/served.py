"""A frozen model behind servers, SGLang's or our own: token ids go out, log-probs come back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from megatron_gopd.config import schema
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import open_hf_weights
from megatron_gopd.policies.identity import describe
from megatron_gopd.ranks import on_first
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.fingerprints import Fingerprints, checksums_of, comparable, told
from megatron_gopd.servers.homes import Homes
from megatron_gopd.servers.http_client import LostRequestError, RefusedError, naming
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.top_logprobs import Scored

REQUESTS = 64  # in flight at a server
Result = TypeVar("Result")


class ServedScorer:
    """Servers of one teacher or reference. Rank 0 talks to them; every method is collective."""

    def __init__(self, settings: schema.Scorer, who: str, temperature: float):
        """`who` it is in messages; `temperature` of the softmax."""
        self.settings, self.who, self.temperature = settings, who, temperature
        self._pool: ServerPool | None = None
        self._homes: Homes | None = None

    def start(self, logs: Path) -> None:
        """Start or find the servers; their logs go to the folder `logs`.

        Raises:
            UserError: a server does not start, or holds another model than `settings.model`.
        """
        self._homes = Homes(f"{self.who}.server", self.settings.server, logs)
        on_first(lambda: self._start(logs))

    def score(self, rows: Sequence[Row], names: Sequence[str] | None = None) -> list[np.ndarray]:
        """Log-prob of every response token of each row: [response] float32, nats. `names`: of the rows, in messages.

        Raises:
            UserError: a server refuses a row, gives what cannot be its log-probs, or none is left.
        """
        if self.settings.engine == "sglang":
            return [scored.logprobs for scored in self.score_top(rows, 0, names)]
        return self._ask_of_each(_of_our_scorer, rows, self.temperature, names)

    def score_top(self, rows: Sequence[Row], top_k: int, names: Sequence[str] | None = None) -> list[Scored]:
        """As score, and the most likely tokens beside; SGLang's servers only."""
        assert self.temperature == 1  # the configuration sees to it
        return self._ask_of_each(_of_sglang, rows, top_k, names)

    def _ask_of_each(
        self,
        ask: Callable[..., Awaitable[Result]],
        rows: Sequence[Row],
        setting: float,
        names: Sequence[str] | None,
    ) -> list[Result]:
        """What ask(row, setting, client) tells of each row."""

        async def named(row: Row, name: str, client: SGLangClient) -> Result:
            with naming(f"{self.who}, {name}"):
                return await ask(row, setting, client)

        async def every() -> list[Result]:
            called = names or [f"row {number}" for number in range(len(rows))]
            asked = (self._pool.ask(partial(named, *each)) for each in zip(rows, called, strict=True))
            return await asyncio.gather(*asked)

        return on_first(lambda: self._pool.background.run(every()))

    def close(self) -> None:
        if self._pool:
            self._pool.close()
        if self._homes:
            self._homes.close()

    def _start(self, logs: Path) -> None:
        self._pool = self._connect(logs)
        try:
            for server in self._pool.servers if self.settings.server.urls else ():
                self._pool.background.run(self._refuse_another(server.client))
        except (LostRequestError, RefusedError) as error:
            self._pool.close()
            raise UserError(f"{self.who}: {error}") from None
        except BaseException:
            self._pool.close()
            raise

    def _connect(self, logs: Path) -> ServerPool:
        settings = self.settings
        return ServerPool(
            settings.server,
            name=_pool_name(self.who),
            model=settings.model,
            vocab_size=Architecture.read(settings.model).vocab_size,
            dtype=settings.dtype,
            logs=logs,
            most_requests=REQUESTS,
            homes=self._homes.each,
        )

    async def _refuse_another(self, client: SGLangClient) -> None:
        """Raises UserError: the server holds another model."""
        if self.settings.engine == "sglang":
            await refuse_another_model(self.settings, self.who, client)
            return
        about, wanted = await client.get("/model_info"), describe(self.settings.model)
        theirs = about.get("architecture")
        wrong = _differences(wanted["architecture"], theirs if isinstance(theirs, dict) else {})
        if about.get("tokenizer") != wanted["tokenizer"]:
            wrong.append("another tokenizer")
        refuse_unlike(wrong, self.settings, self.who, client.url, about.get("model_path"))


def _pool_name(who: str) -> str:
    """For files: a teacher's is not its reference's."""
    return who.replace("the ", "").replace(".", "-").replace(" ", "-")


async def refuse_another_model(settings: schema.Scorer, who: str, client: SGLangClient) -> None:
    """That a server holds the model of `settings`: by architecture, and on a CPU by every weight.

    Raises UserError: it holds another.
    """
    about = await client.get("/model_info")
    config = json.loads(Path(settings.model, "config.json").read_text())
    if "model_type" not in about:
        raise UserError(f"{who}: {client.url} is no SGLang server; name another, or set engine: served for our scorer")
    if about["model_type"] != config["model_type"]:
        raise UserError(
            f"{who}: {client.url} serves a {about['model_type']} ({about.get('model_path')}), but "
            f"{settings.model} is a {config['model_type']}; name the right server, or the right model"
        )
    served = Path(str(about.get("model_path")))
    if (served / "config.json").is_file():  # holds on a GPU too, whose checksums are made otherwise
        shapes = (asdict(Architecture.read(folder)) for folder in (settings.model, served))
        refuse_unlike(_differences(*shapes), settings, who, client.url, served)
    if not comparable(await client.get("/server_info")):
        return
    theirs = await checksums_of(client, settings.server.patience_s)
    fingerprints, source = Fingerprints(), open_hf_weights(settings.model)
    dtype, tied = getattr(torch, settings.dtype), config.get("tie_word_embeddings")
    named = ((name, source.tensor(name).to(dtype)) for name in sorted(source.names()))
    for _ in fingerprints.of_passing((n, t) for n, t in named if not (tied and n == "lm_head.weight")):
        pass
    if differing := fingerprints.differences(theirs):
        raise UserError(
            f"{who}: {client.url} does not hold the weights of {settings.model} in "
            f"{settings.dtype}: {told(differing)} differ; name the right server, or the right model"
        )


def refuse_unlike(wrong: list[str], settings: schema.Scorer, who: str, url: str, served: object) -> None:
    if wrong:
        raise UserError(
            f"{who}: {url} serves {served}, which is not like {settings.model}: {'; '.join(wrong[:3])}; "
            f"name the right server, or the right model"
        )


def _differences(ours: dict, theirs: dict) -> list[str]:
    """Of two architectures."""
    return [f"{key}: {ours[key]} here, {theirs.get(key)} there" for key in ours if theirs.get(key) != ours[key]]


async def _of_sglang(row: Row, top_k: int, client: SGLangClient) -> Scored:
    return await client.score_top(row.prompt_tokens, row.response_tokens, top_k)


async def _of_our_scorer(row: Row, temperature: float, client: SGLangClient) -> np.ndarray:
    return await client.score_by_ours(told_tokens(row) | {"temperature": temperature})


def told_tokens(row: Row) -> dict[str, list[int]]:
    """As our scorer is asked; JSON knows no array."""
    tokens = {"prompt_tokens": row.prompt_tokens, "response_tokens": row.response_tokens}
    return {name: np.asarray(ids).tolist() for name, ids in tokens.items()}
