"""A frozen model behind servers, SGLang's or our own: token ids go out, log-probs come back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from megatron_gopd.config import schema
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies.identity import describe
from megatron_gopd.policies.served_model import differences, refuse_another_model, refuse_unlike
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.homes import Homes
from megatron_gopd.servers.http_client import LostRequestError, RefusedError, UnknownPathError, naming
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.top_logprobs import Scored

Result = TypeVar("Result")


class ServedScorer:
    """Servers of one teacher or reference. Rank 0 talks to them; every method is collective."""

    REQUESTS: ClassVar[int] = 64  # in flight at a server
    OPTIONS: ClassVar[dict[str, bool | int]] = {}  # of sglang.launch_server, of servers that are started here

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

    def score(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Log-prob of every response token of each row: [response] float32, nats.

        Raises:
            UserError: a server refuses a row, gives what cannot be its log-probs, or none is left.
        """
        return self.ask(rows)()

    def ask(self, rows: Sequence[Row], names: Sequence[str] | None = None) -> Callable[[], list[np.ndarray]]:
        """Ask for what score() returns; what is returned waits for it, raises the same, and is collective, too.
        `names`: of the rows, in messages."""
        if self.settings.engine == "sglang":
            top = self.ask_top(rows, 0, names)
            return lambda: [scored.logprobs for scored in top()]
        return self._ask_each([partial(_of_our_scorer, row, self.temperature) for row in rows], names)

    def ask_top(
        self, rows: Sequence[Row], top_k: int, names: Sequence[str] | None = None
    ) -> Callable[[], list[Scored]]:
        """As ask, and the most likely tokens beside; SGLang's servers only."""
        assert self.temperature == 1  # the configuration sees to it
        return self._ask_each([partial(_of_sglang, row, top_k) for row in rows], names)

    def ask_ids(
        self, rows: Sequence[Row], ids: Sequence[np.ndarray], names: Sequence[str] | None = None
    ) -> Callable[[], list[np.ndarray]]:
        """As ask, the log-probs of each response token's own `ids` [response, k], of which it is the first; our
        scorer's only."""
        of_each = zip(rows, ids, strict=True)
        return self._ask_each([partial(self._of_ids, row, of_row) for row, of_row in of_each], names)

    def _ask_each(
        self, requests: list[Callable[[SGLangClient], Awaitable[Result]]], names: Sequence[str] | None
    ) -> Callable[[], list[Result]]:
        """What each tells."""

        async def named(request: Callable, name: str, client: SGLangClient) -> Result:
            with naming(f"{self.who}, {name}"):
                return await request(client)

        async def every() -> list[Result]:
            called = names or [f"row {number}" for number in range(len(requests))]
            asked = (self._pool.ask(partial(named, *each)) for each in zip(requests, called, strict=True))
            return await asyncio.gather(*asked)

        answers = self._pool.background.start(every()) if is_first() else None
        return lambda: on_first(lambda: answers.result())

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
            most_requests=self.REQUESTS,
            options=self.OPTIONS,
            homes=self._homes.each,
        )

    async def _of_ids(self, row: Row, ids: np.ndarray, client: SGLangClient) -> np.ndarray:
        body = told_tokens(row) | {"ids": ids.tolist(), "temperature": self.temperature}
        try:
            return await client.support_by_ours(body)
        except UnknownPathError:
            raise UnknownPathError(
                f"{client.url} gives no log-probs of given tokens, which algorithm.gradient: top_k reads: it runs an "
                f"older megatron-gopd; update it there and start serve-scorer anew"
            ) from None

    async def _refuse_another(self, client: SGLangClient) -> None:
        """Raises UserError: the server holds another model."""
        if self.settings.engine == "sglang":
            await refuse_another_model(self.settings, self.who, client)
            return
        about, wanted = await client.get("/model_info"), describe(self.settings.model)
        theirs = about.get("architecture")
        wrong = differences(wanted["architecture"], theirs if isinstance(theirs, dict) else {})
        if about.get("tokenizer") != wanted["tokenizer"]:
            wrong.append("another tokenizer")
        refuse_unlike(wrong, self.settings, self.who, client.url, about.get("model_path"))


def _pool_name(who: str) -> str:
    """For files: a teacher's is not its reference's."""
    return who.replace("the ", "").replace(".", "-").replace(" ", "-")


async def _of_sglang(row: Row, top_k: int, client: SGLangClient) -> Scored:
    return await client.score_top(row.prompt_tokens, row.response_tokens, top_k)


async def _of_our_scorer(row: Row, temperature: float, client: SGLangClient) -> np.ndarray:
    return await client.score_by_ours(told_tokens(row) | {"temperature": temperature})


def told_tokens(row: Row) -> dict[str, list[int]]:
    """As our scorer is asked; JSON knows no array."""
    tokens = {"prompt_tokens": row.prompt_tokens, "response_tokens": row.response_tokens}
    return {name: np.asarray(ids).tolist() for name, ids in tokens.items()}
