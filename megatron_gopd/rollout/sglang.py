"""The engine of SGLang servers: rank 0 talks to them, all ranks get the trajectories."""

from __future__ import annotations

import asyncio
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from megatron_gopd.config import Config
from megatron_gopd.config.models import Model, RolloutServers, Scorer, Servers
from megatron_gopd.config.placement import ROLLOUT
from megatron_gopd.data import Prompt, Trajectory, load_tokenizer, stop_ids
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.copies import copies
from megatron_gopd.policies.served_model import refuse_another_model
from megatron_gopd.ranks import give_back_memory, is_first, on_first
from megatron_gopd.rollout.batch import Batch, Turn
from megatron_gopd.rollout.probes import probe_rows
from megatron_gopd.rollout.protocol import Exports
from megatron_gopd.rollout.sampling import Growing, Response
from megatron_gopd.rollout.server_weights import ServerWeights
from megatron_gopd.rollout.trajectories import trajectory_of
from megatron_gopd.runs import progress
from megatron_gopd.servers.client import Answer, SGLangClient
from megatron_gopd.servers.homes import Homes
from megatron_gopd.servers.http_client import LostRequestError, RefusedError, naming
from megatron_gopd.servers.pool import ServerPool, Together

# everything that a server would otherwise take from the model's generation_config.json
PLAIN = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "frequency_penalty": 0.0, "presence_penalty": 0.0} | {
    "repetition_penalty": 1.0,
    "skip_special_tokens": False,
}
# without the first two SGLang says that it gave memory away, and keeps it; or it takes back weights that hold anything.
# The share is decided when a run starts (plan/colocation.py), but of servers that only evaluate, which no plan counts
COLOCATED = {"enable-memory-saver": True, "enable-weights-cpu-backup": True, "mem-fraction-static": 0.7}

Sampled = tuple[int, tuple[Response, int]]  # number of the request; its response, version of the weights that began it


class SGLangEngine:
    """Samples from servers that hold the student's weights; see RolloutEngine for what its methods promise."""

    def __init__(self, config: Config, model: Model | None = None, servers: Servers | None = None):
        """`model`, in `servers`, where it is not the student's. Raises UserError: it has no tokenizer or no stop id."""
        self.config, self._model, self._key = config, model or config.student, ROLLOUT
        self._servers = servers or config.rollout.sglang
        self._colocated = isinstance(self._servers, RolloutServers) and self._servers.colocated
        self._folder = self._model.model
        tokenizer = load_tokenizer(self._folder)
        self.stop_ids = stop_ids(self._folder, tokenizer)
        self._last_id = max(tokenizer.get_vocab().values())
        self._probes = probe_rows(tokenizer)
        self._vocab_size = Architecture.read(self._folder).vocab_size
        self.weight_version = 0
        self._pool: ServerPool | None = None  # on rank 0
        self._weights: ServerWeights | None = None
        self._homes: Homes | None = None

    def start(self, student: Exports, logs: Path) -> None:
        """See RolloutEngine.start."""
        self._homes = Homes(self._key, self._servers, logs)
        on_first(lambda: self._start(logs))
        self._weights = ServerWeights(self.config, self._pool, self._probes, self._homes.first_ranks)
        self.sync(student, 0)

    def generate(
        self, prompts: list[Prompt], step: int, *, samples: int | None = None, max_tokens: int | None = None
    ) -> Iterator[list[Trajectory]]:
        """See RolloutEngine.generate: chunks of at least a quarter of the responses, as they finish; colocated, one."""
        wanted = [(prompt, i) for prompt in prompts for i in range(samples or self.config.rollout.samples_per_prompt)]
        limit = max_tokens or self.config.rollout.max_response_tokens
        self._refuse_unknown_ids(prompts)
        self._occupy()
        batch = None
        if is_first():
            alike = defaultdict(Together)
            shares = max(1, len(self._pool.servers) // max(1, len(prompts)))  # of a prompt's samples: no server idles
            count = progress.sampling(len(wanted))
            requests = [
                partial(self._sample, prompt, sample, step, limit, alike[prompt.id, sample % shares], count)
                for prompt, sample in wanted
            ]
            batch = self._batch(requests)
        chunks = self._chunks(batch)
        return ([self._trajectory(*wanted[number], *sampled) for number, sampled in chunk] for chunk in chunks)

    def decode(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Response]:
        """See RolloutEngine.decode."""
        self._occupy()
        batch = None
        if is_first():
            greedy = {"temperature": 0.0}
            requests = [
                partial(self._respond, each, max_tokens, greedy, Together(), f"prompt {number}")
                for number, each in enumerate(prompts)
            ]
            batch = self._batch(requests)
        numbered = [each for chunk in self._chunks(batch) for each in chunk]  # in the order in which they finished
        return [response for _, (response, _) in sorted(numbered, key=itemgetter(0))]

    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """See RolloutEngine.logprobs."""
        self._occupy()

        async def every() -> list[np.ndarray]:
            asked = (
                partial(SGLangClient.score, prompt=row.prompt_tokens, response=row.response_tokens) for row in rows
            )
            return await asyncio.gather(*map(self._pool.ask, asked))

        scored = on_first(lambda: self._pool.background.run(every()))
        self.release()
        return scored

    def sync(self, policy: Exports, version: int | None = None) -> None:
        """See RolloutEngine.sync. Responses under way go on with the new weights, their cache computed anew."""
        self._policy = policy
        self.weight_version = self.weight_version + 1 if version is None else version
        self._occupy()
        self._weights.update(policy, self.weight_version)

    def release(self) -> None:
        """See RolloutEngine.release: colocated servers do."""
        if self._colocated:
            on_first(lambda: self._pool.release())

    def close(self) -> None:
        """End the servers that the run started. Collective."""
        if self._weights:
            self._weights.close()
        if self._pool:
            self._pool.close()
            self._pool = None
        if self._homes:
            self._homes.close()

    def _chunks(self, batch: Batch | None) -> Iterator[list[Sampled]]:
        """On every rank, which has the prompts. Colocated servers give their memory away first: scorers need it."""
        if not self._colocated:
            yield from self._finished(batch)
            return
        whole = [each for chunk in self._finished(batch) for each in chunk]
        self.release()
        yield whole

    def _finished(self, batch: Batch | None) -> Iterator[list[Sampled]]:
        try:
            while (turn := on_first(lambda: batch.take())) is not Turn.END:
                if turn is Turn.UPDATE:
                    self._weights.update(self._policy, self.weight_version, only_stale=True)
                elif turn is not Turn.WAIT:
                    yield turn
        finally:
            if batch:
                batch.cancel()

    def _batch(self, requests: Sequence[Callable[[], Awaitable[tuple[Response, int]]]]) -> Batch:
        return Batch(self._pool, requests, self.config.rollout.max_batch_size * len(self._pool.servers))

    async def _sample(
        self, prompt: Prompt, sample: int, step: int, limit: int, alike: Together, count: progress.Count
    ) -> tuple[Response, int]:
        key = [self.config.run.seed, step, zlib.crc32(prompt.id.encode()), sample]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0]) >> 1  # 31 bits
        sampling = {"temperature": self.config.rollout.temperature, "sampling_seed": seed}
        sampled = await self._respond(prompt.student_tokens, limit, sampling, alike, prompt.name)
        count.add(1, len(sampled[0].tokens))
        return sampled

    async def _respond(
        self, prompt: Sequence[int], limit: int, sampling: dict, alike: Together, name: str
    ) -> tuple[Response, int]:
        """A whole response, and the version of the weights that began it; what was cut short is continued."""
        response, version = Growing(), None

        async def generate(tokens: list[int], sampling: dict, client: SGLangClient) -> Answer:
            with naming(name):
                return await client.generate(tokens, sampling)

        while len(response.tokens) < limit and not response.finished:
            left = {"max_new_tokens": limit - len(response.tokens), "stop_token_ids": self.stop_ids}
            tokens = [*prompt, *response.tokens]
            answer = await self._pool.ask(partial(generate, tokens, PLAIN | sampling | left), alike)
            version = version or answer.weight_version
            response.tokens += answer.tokens
            response.logprobs += answer.logprobs
            response.finished = answer.finish == "stop"
        return response.response(), self._known(version)

    def _trajectory(self, prompt: Prompt, sample: int, response: Response, version: int) -> Trajectory:
        held = {"weight_version": version, "folder": self._folder, "last_id": self._last_id}
        return trajectory_of(prompt, sample, response, **held)

    def _known(self, version: str) -> int:
        return self._weights.version_of(version)

    def _refuse_unknown_ids(self, prompts: list[Prompt]) -> None:
        """An id that the embedding does not have would end the server."""
        for prompt in prompts:
            if max(prompt.student_tokens) >= self._vocab_size:
                raise UserError(
                    f"{prompt.source}: token id {max(prompt.student_tokens)} of prompt {prompt.id!r} is outside the "
                    f"vocabulary of {self._folder} ({self._vocab_size})"
                )

    def _occupy(self) -> None:
        """Colocated: the servers take back the memory they gave away. Collective."""
        if self._colocated:
            copies().finish()  # what is on its way to the host is memory that they lack
            give_back_memory()
            on_first(lambda: self._pool.occupy())

    def _start(self, logs: Path) -> None:
        options = {"load-format": "dummy"}  # the first sync brings the weights
        if self._colocated and torch.cuda.is_available():
            options |= COLOCATED
        self._pool = self._pool_of("rollout", logs, needs_weights=True, options=options)

    def _pool_of(self, name: str, logs: Path, **options) -> ServerPool:
        most = self.config.rollout.max_batch_size
        held = {"model": self._folder, "dtype": self._model.dtype, "vocab_size": self._vocab_size}
        homes = self._homes.each
        return ServerPool(self._servers, name=name, logs=logs, most_requests=most, homes=homes, **held, **options)


class FrozenSGLangEngine(SGLangEngine):
    """Samples from servers that hold a frozen model, which no update reaches."""

    def __init__(self, config: Config, model: Scorer, who: str):
        """`who` it is, in messages and log files."""
        super().__init__(config, model, model.server)
        self._who, self._key = who, f"{who}.server"

    def start(self, policy: Exports, logs: Path) -> None:
        """Start or find the servers. Raises UserError: one does not start, or holds another model."""
        self._homes = Homes(self._key, self._servers, logs)
        on_first(lambda: self._start(logs))

    def _start(self, logs: Path) -> None:
        self._pool = self._pool_of(self._who.replace(".", "-"), logs)
        try:
            for server in self._pool.servers if self._servers.urls else ():
                self._pool.background.run(refuse_another_model(self._model, self._who, server.client))
        except (LostRequestError, RefusedError) as error:
            raise UserError(f"{self._who}: {error}") from None

    def _known(self, version: str) -> int:
        return 0
