"""The engine of SGLang servers: rank 0 talks to them, all ranks get the trajectories."""

from __future__ import annotations

import asyncio
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.models import Model, RolloutServers, Scorer, Servers
from megatron_gopd.config.placement import ROLLOUT
from megatron_gopd.data import Prompt, Trajectory, load_tokenizer, stop_ids
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.copies import copies
from megatron_gopd.policies.passes import tokens_of_a_pass
from megatron_gopd.policies.served_model import refuse_another_model
from megatron_gopd.ranks import give_back_memory, is_first, on_first
from megatron_gopd.rollout.batch import Batch, Turn
from megatron_gopd.rollout.probes import probe_rows
from megatron_gopd.rollout.protocol import Exports
from megatron_gopd.rollout.responses import Ending, Responses
from megatron_gopd.rollout.routed_experts import refuse_without_experts
from megatron_gopd.rollout.sampling import Response
from megatron_gopd.rollout.server_weights import ServerWeights
from megatron_gopd.rollout.stream import Asked, Feed, Stream
from megatron_gopd.rollout.trajectories import trajectory_of
from megatron_gopd.runs import progress
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.homes import Homes
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.pool import ServerPool, Together
from megatron_gopd.servers.routed_experts import FLAG, Routers

# without the first two SGLang says that it gave memory away, and keeps it; or it takes back weights that hold anything.
# The share is decided when a run starts (plan/colocation.py), but of servers that only evaluate, which no plan counts
COLOCATED = {"enable-memory-saver": True, "enable-weights-cpu-backup": True, "mem-fraction-static": 0.7}

Sampled = tuple[int, Response]  # number of the request, and what came of it


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
        architecture = Architecture.read(self._folder)
        self._vocab_size = architecture.vocab_size
        self._routers = Routers.of(architecture) if config.rollout.replay_routing else None
        self.weight_version = 0
        self._pool: ServerPool | None = None  # on rank 0
        self._weights: ServerWeights | None = None
        self._homes: Homes | None = None
        self._stream: Stream | None = None  # on rank 0

    def start(self, student: Exports, logs: Path) -> None:
        """See RolloutEngine.start."""
        self._homes = Homes(self._key, self._servers, logs)
        on_first(lambda: self._start(logs))
        self._weights = ServerWeights(self.config, self._pool, self._probes, self._homes.first_ranks)
        self.sync(student, 0)
        if self._routers:
            on_first(lambda: self._pool.background.run(refuse_without_experts(self._pool.servers, self._routers)))

    def generate(
        self, prompts: list[Prompt], step: int, *, samples: int | None = None, max_tokens: int | None = None
    ) -> Iterator[list[Trajectory]]:
        """See RolloutEngine.generate: chunks of a quarter of the responses, or of what fills a pass of the scorers of
        this job, as they finish; colocated, one."""
        wanted = [(prompt, i) for prompt in prompts for i in range(samples or self.config.rollout.samples_per_prompt)]
        limit = max_tokens or self.config.rollout.max_response_tokens
        self._refuse_unknown_ids(prompts)
        self._occupy()
        batch = None
        if is_first():
            alike = defaultdict(Together)
            shares = max(1, len(self._pool.servers) // max(1, len(prompts)))  # of a prompt's samples: no server idles
            count = progress.sampling(len(wanted))

            async def counted(prompt: Prompt, sample: int) -> Response:
                key = [self.config.run.seed, step, zlib.crc32(prompt.id.encode()), sample]
                routers = self._routers if step else None  # an evaluation's responses are not trained on
                response = await self._sample(prompt, key, limit, alike[prompt.id, sample % shares], routers=routers)
                count.add(1, len(response.tokens))
                return response

            batch = self._batch([partial(counted, *each) for each in wanted])
        chunks = self._chunks(batch)
        return ([self._trajectory(*wanted[number], response) for number, response in chunk] for chunk in chunks)

    def stream(self, feed: Feed, prompts: list[Prompt], step: int) -> Iterator[list[Trajectory]]:
        """The chunks of the step's batch, of what `feed` takes on rank 0. What it lets begin is sampled meanwhile and
        afterwards, as long as the engine is there. Collective.

        To be called for one step after the other, with all `prompts` that may come.
        """
        if is_first():
            self._stream = self._stream or self._begin_stream(feed)
            self._stream.turn_to(step)
        count = progress.sampling(feed.batch_size * self.config.rollout.samples_per_prompt)
        for chunk in self._finished(self._stream):
            for response in (response for taken in chunk for response in taken.responses):
                count.add(1, len(response.tokens))
            yield [
                replace(self._trajectory(prompts[number], sample, response), early=early)
                for number, early, responses in chunk
                for sample, response in enumerate(responses)
            ]

    def decode(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Response]:
        """See RolloutEngine.decode."""
        self._occupy()
        batch = None
        if is_first():
            greedy = {"temperature": 0.0}
            requests = [
                partial(self._responses.whole, each, max_tokens, greedy, Together(), f"prompt {number}")
                for number, each in enumerate(prompts)
            ]
            batch = self._batch(requests)
        numbered = [each for chunk in self._chunks(batch) for each in chunk]  # in the order in which they finished
        return [response for _, response in sorted(numbered, key=itemgetter(0))]

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
        """See RolloutEngine.sync. Responses under way go on with the new weights: see rollout.sglang.on_update."""
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
        try:
            if not self._colocated:
                yield from self._finished(batch)
                return
            whole = [each for chunk in self._finished(batch) for each in chunk]
            self.release()
            yield whole
        finally:
            if batch:
                batch.cancel()

    def _finished(self, source: Batch | Stream | None) -> Iterator[list]:
        while (turn := on_first(lambda: source.take())) is not Turn.END:
            if turn is Turn.UPDATE:
                self._weights.update(self._policy, self.weight_version, only_stale=True)
            elif turn is not Turn.WAIT:
                yield turn

    def _batch(self, requests: Sequence[Callable[[], Awaitable[Response]]]) -> Batch:
        return Batch(self._pool, requests, self._places, self._fill_a_pass)

    def _fill_a_pass(self, responses: Sequence[Response]) -> bool:
        """Of those who score them."""
        return sum(len(each.tokens) for each in responses) >= tokens_of_a_pass(self.config, dist.get_world_size())

    def _begin_stream(self, feed: Feed) -> Stream:
        rollout = self.config.rollout

        async def respond(asked: Asked, sample: int, ending: Ending) -> Response:
            self._refuse_unknown_ids([asked.prompt])
            key = [*asked.key, sample]
            held = {"ending": ending, "routers": self._routers}
            return await self._sample(asked.prompt, key, rollout.max_response_tokens, asked.together, **held)

        many = {"samples": rollout.samples_per_prompt, "places": self._places, "fills": self._fill_a_pass}
        return Stream(self._pool, feed, respond, **many)

    @property
    def _responses(self) -> Responses:
        return Responses(self._pool, self.stop_ids, self._known)

    @property
    def _places(self) -> int:
        """Requests at a time."""
        return self.config.rollout.max_batch_size * len(self._pool.servers)

    async def _sample(self, prompt: Prompt, key: list[int], limit: int, together: Together, **held) -> Response:
        """`key`: of the random numbers; `held`: see Responses.whole."""
        seed = int(np.random.SeedSequence(key).generate_state(1)[0]) >> 1  # 31 bits
        sampling = {"temperature": self.config.rollout.temperature, "sampling_seed": seed}
        return await self._responses.whole(prompt.student_tokens, limit, sampling, together, prompt.name, **held)

    def _trajectory(self, prompt: Prompt, sample: int, response: Response) -> Trajectory:
        held = {"weight_version": self.weight_version, "folder": self._folder, "last_id": self._last_id}
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
        options |= {FLAG: True} if self._routers else {}
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
