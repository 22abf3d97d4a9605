"""Several servers of one model: requests go to the least loaded, and again where an answer is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megatron_gopd.config.placement import gpus_of_servers
from megatron_gopd.config.schema import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.machine import visible_gpus
from megatron_gopd.runs.spans import tell
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.homes import Here, There
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.launch import Launch
from megatron_gopd.servers.loop import Background
from megatron_gopd.servers.memory import Memory
from megatron_gopd.servers.record import Record
from megatron_gopd.servers.server import Server, State
from megatron_gopd.servers.supervisor import Supervisor

LOGGER = logging.getLogger(__name__)
RETRY_S, LOOK_S, ANSWERING_S = 0.1, 0.25, 1.0
Result = TypeVar("Result", bound=Sized)


@dataclass
class Together:
    """Requests that begin alike, and so are asked of one server, as long as it is there and has room: it keeps what it
    computed of the first."""

    server: Server | None = None


class ServerPool:
    """The servers of `settings`, all up after the constructor. Used by one process; close() ends what it started.

    With `needs_weights`, a server takes requests only after admit(): what it started with is not the current policy.
    """

    def __init__(
        self,
        settings: Servers,
        *,
        name: str,
        model: str,
        dtype: str,
        logs: Path,
        most_requests: int,
        needs_weights: bool = False,
        options: dict | None = None,
        vocab_size: int | None = None,
        homes: Sequence[Here | There] = (),
    ):
        """Start or find every server, and wait until it answers.

        Args:
            name: of the servers in messages and log files.
            most_requests: in flight at a server.
            vocab_size: of `model`, with which the ids of replies are compared; None: they are not.
            options: of sglang.launch_server, behind those of `settings`.
            homes: the nodes on which `settings.count` servers each are started; default: this one.

        Raises:
            UserError: a server does not start, or does not answer.
        """
        self.settings, self.model, self.dtype, self.logs = settings, model, dtype, logs
        self.options = (options or {}) | settings.flags
        self.most_requests = most_requests
        token = os.environ.get(settings.token_variable)
        if settings.urls:
            self.servers = [Server(name, url, token, vocab_size=vocab_size) for url in settings.urls]
        else:
            self.servers = [
                Server("-".join(filter(None, (name, home.label, str(number)))), home=home, vocab_size=vocab_size)
                for home in homes or (Here(),)
                for number in range(settings.count)
            ]
        self.background = Background()
        self._supervisor = Supervisor(settings, self.servers, self._launch, needs_weights=needs_weights)
        self._memory = Memory(self._supervisor)
        self._record = Record(name, self.servers, logs)
        try:
            self.background.run(self._supervisor.bring_all_up())
        except BaseException:
            self.close()
            raise
        self.background.start(self._record.keep())
        for server in self.servers:
            self.background.start(self._supervisor.watch(server))

    def close(self) -> None:
        """End every server that was started here, and forget the others."""
        self.background.close(self._hang_up)
        self._record.close()
        with ThreadPoolExecutor(len(self.servers)) as threads:  # each takes seconds to end
            list(threads.map(Server.stop, self.servers))

    async def ask(
        self, request: Callable[[SGLangClient], Awaitable[Result]], together: Together | None = None
    ) -> Result:
        """The result of `request`, of which the length counts tokens: asked of the least loaded server, and again where
        an answer is lost.

        `together`: those it goes with, to one server.

        Raises:
            UserError: a server refuses it, or none is left.
        """
        while True:
            server = await self._least_loaded(together or Together())
            task = asyncio.ensure_future(request(server.client))
            server.begin(task)
            try:
                result = await task
                server.answered(len(result))
                return result
            except LostRequestError as error:
                LOGGER.info("%s; asked again", error)
                server.failed()
            except RefusedError as error:
                raise UserError(str(error)) from None
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # this request is not wanted any more
                    task.cancel()
                    raise
            finally:
                server.end(task)
                await self._supervisor.notify()
            await asyncio.sleep(RETRY_S)

    def admit(self, server: Server) -> None:
        """The server has the current weights: it may take requests. Whether it can answer one is still to be seen."""
        server.state = State.READY
        server.failing_since, server.rests_until = None, 0.0
        self.background.run(self._supervisor.notify())

    def withdraw(self, servers: Iterable[Server]) -> None:
        """The servers do not have the current weights: they take no requests until the next admit()."""
        for server in servers:
            if server.state is State.READY:
                server.state = State.STALE

    @property
    def stale(self) -> list[Server]:
        return [server for server in self.servers if server.state is State.STALE]

    def answering(self, only_stale: bool = False) -> list[Server]:
        """The servers whose weights can be updated; waits until there is one. Raises UserError: there will be none."""
        while True:
            self._raise_if_lost()
            states = (State.STALE,) if only_stale else (State.STALE, State.READY)
            if found := [server for server in self.servers if server.state in states]:
                return found
            time.sleep(ANSWERING_S)

    @contextlib.contextmanager
    def quiet(self, servers: list[Server]) -> Iterator[None]:
        """Within the block the servers sample nothing, and are not watched; requests go on afterwards.

        Responses under way go on as the settings' on_update says. How long it takes is told as `servers_paused`.
        Raises UserError: in place, which a server cannot.
        """
        self._supervisor.updating, began, mode = True, time.perf_counter(), self.settings.on_update
        try:
            refused = self.background.run(self._to_all(servers, "/pause_generation", {"mode": mode}))
            if refused and mode == "in_place":
                raise UserError(f"rollout.sglang.on_update: in_place: {refused}; use retract, or a newer SGLang")
            yield
        finally:
            self.background.run(self._to_all(servers, "/continue_generation", {}))
            self._supervisor.updating = False
            tell("servers_paused", time.perf_counter() - began)

    def recover(self, lost: Iterable[Server]) -> None:
        """Bring back servers that were lost in an update; when they are up, they need the weights."""
        for server in lost:
            self.background.run(self._supervisor.lost(server, "was lost in an update of its weights"))
        self._raise_if_lost()

    def release(self) -> None:
        """See Memory.release."""
        self.background.run(self._memory.release())
        self._raise_if_lost()

    def occupy(self) -> None:
        """See Memory.occupy."""
        self.background.run(self._memory.occupy())
        self._raise_if_lost()

    async def _hang_up(self) -> None:
        for server in self.servers:
            if server.client:
                await server.client.close()

    async def _to_all(self, servers: list[Server], path: str, body: dict) -> RefusedError | None:
        """The last refusal, if there is one. A server that does not answer is left to its watcher."""
        refused = None
        posts = [server.client.post(path, body, self.settings.patience_s) for server in servers]
        for server, reply in zip(servers, await asyncio.gather(*posts, return_exceptions=True), strict=True):
            if isinstance(reply, Exception):
                LOGGER.info("%s: %s", server, reply)
                refused = reply if isinstance(reply, RefusedError) else refused
        return refused

    def _launch(self, server: Server) -> Launch:
        number = self.servers.index(server) % self.settings.count  # on its node
        visible = visible_gpus()  # nodes are alike
        gpus = list(gpus_of_servers(self.settings, visible)[number]) if visible or self.settings.gpus else None
        return Launch(str(self.model), self.dtype, self.options, gpus, str(self.logs / f"{server.name}.log"))

    async def _least_loaded(self, together: Together) -> Server:
        while True:
            self._raise_if_lost()
            now = time.monotonic()
            free = [s for s in self.servers if s.state is State.READY and s.rests_until <= now]
            free = [s for s in free if len(s.requests) < self.most_requests]
            if free:
                if together.server not in free:
                    together.server = min(free, key=lambda server: len(server.requests))
                return together.server
            await self._supervisor.change(LOOK_S)

    def _raise_if_lost(self) -> None:
        if self._supervisor.fatal:
            raise self._supervisor.fatal
