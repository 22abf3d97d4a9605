"""Several servers of one model: requests go to the least loaded, and a server that fails is started anew."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from megatron_gopd.config.schema import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.servers.client import LostRequestError, RefusedError, SGLangClient
from megatron_gopd.servers.command import command, environment
from megatron_gopd.servers.loop import Background
from megatron_gopd.servers.server import STARTS, Server, State

LOGGER = logging.getLogger(__name__)
WATCH_S, HEALTH_S, RETRY_S = 1.0, 10.0, 0.1
TAGS = ["kv_cache", "weights"]
Result = TypeVar("Result")


class LostServersError(UserError):
    """No server answers any more; what was trained so far is worth a checkpoint."""

    exit_code = 1  # no mistake of the configuration: a job with servers of its own is requeued, and starts them anew


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
    ):
        """Start or find every server, and wait until it answers.

        Args:
            name: of the servers in messages and log files.
            most_requests: in flight at a server.
            options: of sglang.launch_server, behind those of `settings`.

        Raises:
            UserError: a server does not start, or does not answer.
        """
        self.settings, self.model, self.dtype = settings, model, dtype
        self.options = (options or {}) | settings.options
        self.most_requests, self.needs_weights = most_requests, needs_weights
        token = os.environ.get(settings.token_variable)
        if settings.urls:
            self.servers = [Server(name, logs, url, token) for url in settings.urls]
        else:
            self.servers = [Server(f"{name}-{i}", logs / f"{name}-{i}.log") for i in range(settings.count)]
        self.fatal: UserError | None = None
        self.updating = False  # while weights are taken over, a server need not answer anything else
        self.background = Background()
        self._away: set[str] = set()  # URLs of servers without their memory
        self._changed: asyncio.Condition | None = None
        try:
            self.background.run(self._start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every server that was started here, and forget the others."""
        self.background.close(self._hang_up)
        for server in self.servers:
            server.stop()

    async def ask(self, request: Callable[[SGLangClient], Awaitable[Result]]) -> Result:
        """The result of `request`, asked of the least loaded server, and again where an answer is lost.

        Raises:
            UserError: a server refuses it, or none is left.
        """
        while True:
            server = await self._least_loaded()
            task = asyncio.ensure_future(request(server.client))
            server.requests.add(task)
            try:
                result = await task
                server.answered()
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
                server.requests.discard(task)
                await self._notify()
            await asyncio.sleep(RETRY_S)

    def admit(self, server: Server) -> None:
        """The server has the current weights: it may take requests. Whether it can answer one is still to be seen."""
        server.state = State.READY
        server.failing_since, server.rests_until = None, 0.0
        self.background.run(self._notify())

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
            if self.fatal:
                raise self.fatal
            states = (State.STALE,) if only_stale else (State.STALE, State.READY)
            if found := [server for server in self.servers if server.state in states]:
                return found
            time.sleep(WATCH_S)

    @contextlib.contextmanager
    def quiet(self, servers: list[Server]) -> Iterator[None]:
        """Within the block the servers sample nothing, and are not watched; requests go on afterwards.

        Responses under way are retracted: their cache is computed anew.
        """
        self.updating = True
        try:
            self.background.run(self._to_all(servers, "/pause_generation", {"mode": "retract"}))
            yield
        finally:
            self.background.run(self._to_all(servers, "/continue_generation", {}))
            self.updating = False

    def recover(self, lost: Iterable[Server]) -> None:
        """Bring back servers that were lost in an update; when they are up, they need the weights."""
        for server in lost:
            self.background.run(self._lost(server, "was lost in an update of its weights"))
        if self.fatal:
            raise self.fatal

    def release(self) -> None:
        """Have every server give its GPU memory away, the weights kept on the host."""
        self.background.run(self._to_all(self.servers, "/release_memory_occupation", {"tags": TAGS}))
        self._away = {server.url for server in self.servers}

    def occupy(self) -> None:
        """Have the servers that gave memory away take it back."""
        away = [server for server in self.servers if server.url in self._away]
        self.background.run(self._to_all(away, "/resume_memory_occupation", {"tags": TAGS}))
        self._away = set()

    async def _hang_up(self) -> None:
        for server in self.servers:
            if server.client:
                await server.client.close()

    async def _to_all(self, servers: list[Server], path: str, body: dict) -> None:
        """A server that does not answer is left to its watcher."""
        posts = [server.client.post(path, body, self.settings.patience_s) for server in servers]
        for server, reply in zip(servers, await asyncio.gather(*posts, return_exceptions=True), strict=True):
            if isinstance(reply, Exception):
                LOGGER.info("%s: %s", server, reply)

    async def _start(self) -> None:
        self._changed = asyncio.Condition()
        await asyncio.gather(*map(self._bring_up, self.servers))
        for server in self.servers:
            self.background.start(self._watch(server))

    async def _bring_up(self, server: Server) -> None:
        if server.managed:
            await server.start(lambda port: self._launch(server, port), self.settings.start_timeout_s)
        else:
            deadline = time.monotonic() + self.settings.patience_s
            # one that was lost in the middle of an update is still paused, and then not healthy
            while not (await self._went_on(server) and await server.client.healthy()):
                if time.monotonic() > deadline:
                    raise LostServersError(
                        f"{server.url} has not answered for {self.settings.patience_s:g} s (patience_s); "
                        f"start that server, or name another"
                    )
                await asyncio.sleep(WATCH_S)
        server.failing_since = server.mute_since = None
        server.lives += 1
        server.state = State.STALE if self.needs_weights else State.READY
        await self._notify()

    async def _went_on(self, server: Server) -> bool:
        if not self.needs_weights:
            return True
        try:
            await server.client.post("/continue_generation", {}, HEALTH_S)
        except LostRequestError:
            return False
        except RefusedError as error:
            raise LostServersError(
                f"{error}; is it an SGLang server, and is what it asks for in ${self.settings.token_variable}?"
            ) from None
        return True

    def _launch(self, server: Server, port: int) -> tuple[list[str], dict[str, str]]:
        gpus = self.settings.gpus[self.servers.index(server)] if self.settings.gpus else None
        return command(self.model, port, self.dtype, self.options), environment(gpus)

    async def _watch(self, server: Server) -> None:
        """Find out that a server died, hangs, or only fails."""
        asked = time.monotonic()
        while self.fatal is None:
            await asyncio.sleep(WATCH_S)
            if self.updating or server.state is State.DOWN:
                continue
            if server.process and server.process.exit_code is not None:
                await self._lost(server, f"ended with exit code {server.process.exit_code}")
            elif (server.requests or server.mute_since) and time.monotonic() - asked > HEALTH_S:
                asked = time.monotonic()
                well = await server.client.healthy()
                server.mute_since = None if well else server.mute_since or asked
            if not server.requests and time.monotonic() > server.rests_until + HEALTH_S:
                server.failing_since = None  # nobody has asked again: there may have been nothing more to ask
            if server.silent_for() > self.settings.patience_s and not self.updating:
                await self._lost(server, f"gave no good answer for {self.settings.patience_s:g} s")

    async def _lost(self, server: Server, why: str) -> None:
        """Bring a server back, or end the run where that is not possible."""
        LOGGER.warning("server %s: %s; %s", server, why, "started anew" if server.managed else "waiting for it")
        server.drop_requests()
        await self._notify()
        try:
            await self._bring_back(server)
        except UserError as error:
            self.fatal = error
            await self._notify()

    async def _bring_back(self, server: Server) -> None:
        """Raises LostServersError: no start helps, or an external server stays away."""
        while server.starts < STARTS:
            try:
                return await self._bring_up(server)
            except LostServersError:
                raise
            except UserError as error:  # it may need what the last one has not given back yet
                LOGGER.warning("%s", error)
        words = server.process.last_words()
        raise LostServersError(f"the server {server} failed {STARTS} times in a row; {words}")

    async def _least_loaded(self) -> Server:
        while True:
            if self.fatal:
                raise self.fatal
            now = time.monotonic()
            free = [s for s in self.servers if s.state is State.READY and s.rests_until <= now]
            free = [s for s in free if len(s.requests) < self.most_requests]
            if free:
                return min(free, key=lambda server: len(server.requests))
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), WATCH_S / 4)
                except TimeoutError:
                    continue

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
