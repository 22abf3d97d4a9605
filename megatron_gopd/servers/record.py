"""Keeps count of what the servers of a pool do, for whoever asks how the run goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_gopd.runs.servers import ServerRow, write_servers
from megatron_gopd.servers.server import Server, State

WRITE_S, RECENT_S = 10.0, 600.0  # between two looks; of work, over which speed is averaged


class Record:
    """Of those servers that the run starts; of others nothing is written."""

    def __init__(self, pool: str, servers: Sequence[Server], logs: Path):
        """`pool`: its name."""
        self._pool, self._logs = pool, logs
        self._looks = {server: deque([(0.0, 0)]) for server in servers if server.managed}
        self._told: list[ServerRow] = []
        self._writer = ThreadPoolExecutor(1)  # a disk may be slow: requests do not wait for it

    async def keep(self) -> None:
        """Look every now and then, until this is cancelled."""
        while True:
            self.look()
            await asyncio.sleep(WRITE_S)

    def look(self) -> None:
        """Write what is new."""
        rows = [self._row(server) for server in self._looks]
        if rows != self._told:
            self._writer.submit(self._write, rows)
        self._told = rows

    def close(self) -> None:
        """Look a last time; nothing is looked at afterwards."""
        with self._writer:
            self.look()
            self._looks, self._told = {}, []

    def _write(self, rows: list[ServerRow]) -> None:
        with contextlib.suppress(OSError):  # a disk that is full ends the run where something would be lost
            write_servers(self._logs, self._pool, rows)

    def _row(self, server: Server) -> ServerRow:
        return ServerRow(
            name=server.name,
            node=server.home.node,
            up=server.state is not State.DOWN,
            requests=server.done,
            tokens_per_s=self._speed(server),
            restarts=max(0, server.lives - 1),
        )

    def _speed(self, server: Server) -> float | None:
        """Tokens a second of the last seconds in which it had requests; None: it never had any."""
        looks, now = self._looks[server], (server.worked_s, server.tokens)
        if now[0] > looks[-1][0]:
            looks.append(now)
        while len(looks) > 2 and now[0] - looks[1][0] >= RECENT_S:
            looks.popleft()
        seconds, tokens = now[0] - looks[0][0], now[1] - looks[0][1]
        return tokens / seconds if seconds else None
