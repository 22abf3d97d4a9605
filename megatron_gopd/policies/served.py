"""A frozen model behind servers: token ids go out, log-probs come back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import torch

from megatron_gopd.config import schema
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.hf_folder import HFFolder
from megatron_gopd.ranks import on_first
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.fingerprints import Fingerprints, checksums_of, told
from megatron_gopd.servers.pool import ServerPool

REQUESTS = 64  # in flight at a server


class ServedScorer:
    """SGLang servers of one teacher or reference. Rank 0 talks to them; every method is collective."""

    def __init__(self, settings: schema.Scorer, who: str, logs: Path):
        """Start or find the servers.

        Raises:
            UserError: a server does not start, or holds another model than `settings.model`.
        """
        self.settings, self.who = settings, who
        self._pool: ServerPool | None = None
        on_first(lambda: self._start(logs))

    def score(self, rows: list[Row]) -> list[np.ndarray]:
        """Log-prob of every response token of each row, at temperature 1: [response] float32, nats."""

        async def every() -> list[np.ndarray]:
            return await asyncio.gather(*(self._pool.ask(_scoring(row)) for row in rows))

        return on_first(lambda: self._pool.background.run(every()))

    def close(self) -> None:
        if self._pool:
            self._pool.close()

    def _start(self, logs: Path) -> None:
        settings = self.settings
        name = "-".join(self.who.replace(".", " ").split()[-2:])
        self._pool = ServerPool(
            settings.server, name=name, model=settings.model, dtype=settings.dtype, logs=logs, most_requests=REQUESTS
        )
        try:
            for server in self._pool.servers if settings.server.urls else ():
                self._pool.background.run(self._refuse_another_model(server.client))
        except BaseException:
            self._pool.close()
            raise

    async def _refuse_another_model(self, client: SGLangClient) -> None:
        """By architecture, and on a CPU by every weight: a teacher of the same shape is found out too."""
        about = await client.get("/model_info")
        config = json.loads(Path(self.settings.model, "config.json").read_text())
        if about["model_type"] != config["model_type"]:
            raise UserError(
                f"{self.who}: {client.url} serves a {about['model_type']} ({about['model_path']}), but "
                f"{self.settings.model} is a {config['model_type']}; name the right server, or the right model"
            )
        theirs = await checksums_of(client, self.settings.server.patience_s)
        if theirs is None:
            return
        fingerprints, source = Fingerprints(), HFFolder(self.settings.model)
        dtype, tied = getattr(torch, self.settings.dtype), config.get("tie_word_embeddings")
        named = ((name, source.tensor(name).to(dtype)) for name in sorted(source.names()))
        for _ in fingerprints.of_passing((n, t) for n, t in named if not (tied and n == "lm_head.weight")):
            pass
        if differing := fingerprints.differences(theirs):
            raise UserError(
                f"{self.who}: {client.url} does not hold the weights of {self.settings.model} in "
                f"{self.settings.dtype}: {told(differing)} differ; name the right server, or the right model"
            )


def _scoring(row: Row):
    return lambda client: client.score(row.prompt_tokens, row.response_tokens)
