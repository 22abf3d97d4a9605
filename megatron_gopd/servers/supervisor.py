"""The life of a pool's servers: brought up, watched, and started anew when one dies, hangs or only fails."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from megatron_gopd.config.schema import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.launch import Launch
from megatron_gopd.servers.server import STARTS, Server, State

LOGGER = logging.getLogger(__name__)
WATCH_S, HEALTH_S = 1.0, 10.0


class LostServersError(UserError):
    """No server answers any more; what was trained so far is worth a checkpoint."""

    exit_code = 1  # no mistake of the configuration: a job with servers of its own is requeued, and starts them anew


class Supervisor:
    """Keeps `servers` up. Everything but the constructor runs in one event loop.

    With `needs_weights`, a server that came up is stale: what it started with is not the current policy.
    """

    def __init__(
        self,
        settings: Servers,
        servers: list[Server],
        launch: Callable[[Server], Launch],
        *,
        needs_weights: bool,
    ):
        """`launch`: what starts a server."""
        self.settings, self.servers, self.needs_weights = settings, servers, needs_weights
        self.fatal: UserError | None = None  # why no server will come back
        self.updating = False  # while weights are taken over, a server need not answer anything else
        self._launch = launch
        self._changed = asyncio.Condition()

    async def bring_all_up(self) -> None:
        """Start or find every server, and wait until it answers. Raises UserError: one does not."""
        await asyncio.gather(*map(self._bring_up, self.servers))

    async def watch(self, server: Server) -> None:
        """Find out that a server died, hangs, or only fails; ends when the run has to."""
        asked = time.monotonic()
        while self.fatal is None:
            await asyncio.sleep(WATCH_S)
            if self.updating or server.state is State.DOWN:
                continue
            if server.process and server.process.exit_code is not None:
                await self.lost(server, f"ended with exit code {server.process.exit_code}")
            elif (server.requests or server.mute_since) and time.monotonic() - asked > HEALTH_S:
                asked = time.monotonic()
                well = await server.client.healthy()
                server.mute_since = None if well else server.mute_since or asked
            if not server.requests and time.monotonic() > server.rests_until + HEALTH_S:
                server.failing_since = None  # nobody has asked again: there may have been nothing more to ask
            if server.silent_for() > self.settings.patience_s and not self.updating:
                await self.lost(server, f"gave no good answer for {self.settings.patience_s:g} s")

    async def lost(self, server: Server, why: str) -> None:
        """Bring a server back, or end the run where that is not possible."""
        if server.state is State.DOWN:  # whoever saw it first is at it
            return await self.up(server)
        LOGGER.warning("server %s: %s; %s", server, why, "started anew" if server.managed else "waiting for it")
        server.drop_requests()
        await self.notify()
        try:
            await self._bring_back(server)
        except UserError as error:
            self.fatal = error
            await self.notify()

    async def up(self, server: Server) -> None:
        """Wait until the server answers. Raises UserError: it will not."""
        while server.state is State.DOWN:
            if self.fatal:
                raise self.fatal
            await self.change(WATCH_S)

    async def notify(self) -> None:
        """A server may have become free, or is lost."""
        async with self._changed:
            self._changed.notify_all()

    async def change(self, timeout: float) -> None:
        """Wait for the next notify(), at most `timeout` seconds."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                return

    async def _bring_back(self, server: Server) -> None:
        """Raises LostServersError: no start helps, or an external server stays away."""
        while server.starts < STARTS:
            try:
                return await self._bring_up(server)
            except LostServersError:
                raise
            except UserError as error:  # it may need what the last one has not given back yet
                LOGGER.warning("%s", error)
        words = server.process.last_words() if server.process else "it was not even begun"
        raise LostServersError(f"the server {server} failed {STARTS} times in a row; {words}")

    async def _bring_up(self, server: Server) -> None:
        if server.managed:
            await server.start(self._launch(server), self.settings.start_timeout_s)
        else:
            await self._wait_for(server)
        server.failing_since = server.mute_since = None
        server.lives += 1
        server.state = State.STALE if self.needs_weights else State.READY
        await self.notify()

    async def _wait_for(self, server: Server) -> None:
        deadline = time.monotonic() + self.settings.patience_s
        # one that was lost in the middle of an update is still paused, and then not healthy
        while not (await self._went_on(server) and await server.client.healthy()):
            if time.monotonic() > deadline:
                raise LostServersError(
                    f"{server.url} has not answered for {self.settings.patience_s:g} s (patience_s); "
                    f"start that server, or name another ({server.client.unwell})"
                )
            await asyncio.sleep(WATCH_S)

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
