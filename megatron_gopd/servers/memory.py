"""The GPU memory of servers, which they give away while others compute on their GPUs."""

from __future__ import annotations

import asyncio
import time

from megatron_gopd.errors import UserError
from megatron_gopd.servers.http_client import LostRequestError, RefusedError
from megatron_gopd.servers.server import STARTS, Server, State
from megatron_gopd.servers.supervisor import LostServersError, Supervisor

TAGS = ["kv_cache", "weights"]
IDLE_POLL_S = 0.05


class Memory:
    """Of the servers of a pool, in its event loop."""

    def __init__(self, supervisor: Supervisor):
        self._supervisor, self._patience_s = supervisor, supervisor.settings.patience_s
        self._away: dict[Server, int] = {}  # the servers without it, each in which of its lives

    async def release(self) -> None:
        """Have every server give its memory away, the weights kept on the host; also one that has yet to come back, but
        not where the run ends for want of servers.

        Raises:
            UserError: a server refuses, or does not become idle, or is lost again and again.
        """
        if not self._supervisor.fatal:
            await asyncio.gather(*map(self._release, self._supervisor.servers))

    async def occupy(self) -> None:
        """Have the servers that gave memory away take it back. Raises UserError: one refuses."""
        await asyncio.gather(*map(self._occupy, self._supervisor.servers))

    async def _release(self, server: Server) -> None:
        if self._away.get(server) == server.lives:
            return
        why = "it ended"
        for _ in range(STARTS):
            await self._supervisor.up(server)
            life = server.lives
            why = await self._ask(server, "release") or why
            if server.lives == life and server.state is not State.DOWN:
                self._away[server] = life
                return
        raise LostServersError(
            f"the server {server} was lost {STARTS} times in a row when it was to release its memory, at last: {why}"
        )

    async def _occupy(self, server: Server) -> None:
        if self._away.pop(server, None) == server.lives:  # one that was started anew has it
            await self._ask(server, "resume")

    async def _ask(self, server: Server, what: str) -> str:
        """Why the server was lost meanwhile, which is up again then; "" where it was not."""
        try:
            if what == "release":
                await self._wait_until_idle(server)
            await server.client.post(f"/{what}_memory_occupation", {"tags": TAGS}, self._patience_s)
        except RefusedError as error:
            raise UserError(f"the server {server} does not {what} its memory: {error}") from None
        except LostRequestError as error:
            await self._supervisor.lost(server, f"was lost when it was to {what} its memory: {error}")
            return str(error)
        return ""

    async def _wait_until_idle(self, server: Server) -> None:
        """SGLang ends itself when it is to release its memory with a request under way, as the last may still be."""
        deadline = time.monotonic() + self._patience_s
        while busy := await server.client.flush():
            if time.monotonic() > deadline:
                raise UserError(
                    f"the server {server} does not release its memory: after {self._patience_s:g} s (patience_s) "
                    f"it is not idle yet: {busy}; does somebody else ask it?"
                )
            await asyncio.sleep(IDLE_POLL_S)
