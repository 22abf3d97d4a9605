"""Ways to hand the policy's weights to servers. All run on rank 0, while every rank draws the same export."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple

from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.config.models import refusal_of_ranks
from megatron_gopd.errors import UserError
from megatron_gopd.servers.fingerprints import comparable
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.server import Server
from megatron_gopd.srun import this_node

MOST_RANKS = 1024  # of a server
Tensors = Iterator[tuple[str, Tensor]]


class UpdateError(Exception):
    """Some servers were lost on the way: the update may be tried again with the others."""

    def __init__(self, problems: dict[Server, str]):
        super().__init__("; ".join(problems.values()))
        self.problems = problems


class Told(NamedTuple):
    """What a server says of itself."""

    ranks: int  # tensor-parallel
    comparable: bool  # its checksums, with ours


class Update:
    """One way of updating weights; subclasses say how."""

    def __init__(self, pool: ServerPool, config: Config):
        self.pool, self.config, self.settings = pool, config, config.rollout.sglang
        self.told: dict[Server, Told] = {}
        self._run = secrets.token_hex(4)

    def name_of(self, version: int) -> str:
        """What a server calls the weights: another run that updates it counts its versions from 0, too."""
        return f"{version}-{self._run}"

    def version_of(self, name: str) -> int | None:
        """None: the weights called `name` were not sent from here."""
        version, _, run = name.partition("-")
        return int(version) if run == self._run else None

    def ask(self, server: Server) -> Told:
        """What there is to know of a server before it is sent anything.

        Raises:
            UpdateError: it was lost.
            UserError: it refuses to say, or this way does not reach one like it.
        """
        try:
            about = self.pool.background.run(server.client.get("/server_info"))
        except LostRequestError as error:
            raise UpdateError({server: str(error)}) from None
        except RefusedError as error:
            raise UserError(f"the rollout server {server} does not say what it is: {error}") from None
        for size in ("pp_size", "dp_size"):
            if self.settings.sync != "disk" and about.get(size, 1) != 1:
                refusal = refusal_of_ranks(self.settings.sync, size.replace("_", "-"), about[size])
                raise UserError(f"the rollout server {server}: rollout.sglang.{refusal}")
        ranks = about.get("tp_size", 1)
        if type(ranks) is not int or not 0 < ranks <= MOST_RANKS:
            raise UserError(f"the rollout server {server} says that it is of {ranks!r} tensor-parallel ranks (tp_size)")
        self.told[server] = Told(ranks, comparable(about))
        return self.told[server]

    def send(self, weights, servers: list[Server], version: int) -> None:
        """Give `servers` the weights, in the form that this way takes, and name them `version`. They are paused no
        longer than their weights change.

        Raises:
            UpdateError: servers that were lost.
            UserError: a server refuses the weights: it holds another model, or cannot read what was written.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def paused(self, servers: list[Server]) -> Iterator[None]:
        """Within the block they sample nothing; where one is lost in it, any may hold some new weights and some old."""
        with self.pool.quiet(servers):
            try:
                yield
            except UpdateError:
                self.pool.withdraw(servers)
                raise

    def post(self, servers: list[Server], path: str, body: dict | None = None) -> None:
        """The same request to all of `servers`, within the timeout; raises what send() raises."""
        self.wait(self.begin_post(servers, path, [body or {}] * len(servers)))

    def begin_post(self, servers: list[Server], path: str, bodies: list[dict]) -> Future[dict[Server, Exception]]:
        timeout = self.settings.sync_timeout_s

        async def one(server: Server, body: dict) -> Exception | None:
            try:
                await server.client.post(path, body, timeout)
            except (LostRequestError, RefusedError) as error:
                return error
            return None

        async def all_of_them() -> dict[Server, Exception]:
            answers = await asyncio.gather(*map(one, servers, bodies))
            return {server: error for server, error in zip(servers, answers, strict=True) if error}

        return self.pool.background.start(all_of_them())

    @staticmethod
    def wait(posted: Future[dict[Server, Exception]]) -> None:
        problems = posted.result()
        lost = {server: str(error) for server, error in problems.items() if isinstance(error, LostRequestError)}
        if lost:
            raise UpdateError(lost)
        for server, error in problems.items():
            raise UserError(f"the rollout server {server} does not take the student's weights: {error}")


class FromDisk(Update):
    """A folder that both sides see (weights_folder.py)."""

    def send(self, folders: dict[str, str], servers: list[Server], version: int) -> None:
        """`folders`: by the name of the node they are on."""
        about = {"load_format": "auto", "weight_version": self.name_of(version)}
        about |= {"flush_cache": self.settings.flushes}
        paths = [folders[server.home.node if server.home else this_node()] for server in servers]
        bodies = [about | {"model_path": path} for path in paths]
        with self.paused(servers):
            self.wait(self.begin_post(servers, "/update_weights_from_disk", bodies))


class InBuckets(Update):
    """Begin, buckets of tensors, end: what the other two ways share."""

    @contextlib.contextmanager
    def opened(self, servers: list[Server]) -> Iterator[None]:
        """Within the block they are paused, and take buckets."""
        with self.paused(servers):
            try:
                self.post(servers, "/begin_weight_update")
                yield
            finally:  # also after a failure, if only another's to begin: a server with an open update takes no other
                problems = self.begin_post(servers, "/end_weight_update", [{}] * len(servers))
                problems.result()
            self.wait(problems)

    def about(self, version: int, *, is_last: bool) -> dict:
        """What a server is told of a bucket, whatever is in it."""
        return {"flush_cache": is_last and self.settings.flushes, "weight_version": self.name_of(version)}


def in_buckets(tensors: Tensors, size: int) -> Iterator[tuple[list[tuple[str, Tensor]], bool]]:
    """Copies of the tensors, about `size` bytes at a time, and whether they are the last."""
    bucket, held = [], 0
    for name, tensor in tensors:
        if bucket and held + tensor.nbytes > size:
            yield bucket, False
            bucket, held = [], 0
        bucket.append((name, tensor.detach().clone()))  # exports may hand out one buffer again and again
        held += tensor.nbytes
    if bucket:
        yield bucket, True
