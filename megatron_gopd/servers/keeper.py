"""The server processes of another node: its first rank owns them, and rank 0 says what is to be done with them.

They talk through the job's store. Rank 0 writes order/0, order/1, ...: to start a server, whose number is the order's
then, or to stop one by its number, or to end. The node answers in began/N, ended/N and stopped/N.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path

from torch.distributed import Store

from megatron_gopd.errors import UserError
from megatron_gopd.servers.launch import Launch, start
from megatron_gopd.servers.loop import in_a_thread
from megatron_gopd.servers.process import STOP_S, ServerProcess, end_of

POLL_S = 0.1
ANSWER_S = 60.0  # that a node may take to begin what it is told
LAST_ORDER_S = 10.0  # that a rank which is through waits for rank 0's
GONE = "gone"  # a key: the node takes no more orders


class Keeper:
    """Owns the servers of this node, in a thread, until close() or the end of the store, which is rank 0's."""

    def __init__(self, store: Store, host: str, key: Path):
        """`store`: nobody else's client. Servers listen at the address `host`, and want the key in the file `key`."""
        self._store, self._host, self._key = store, host, key
        self._processes: dict[int, ServerProcess] = {}
        self._stops: dict[int, Future[None]] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every server of this node, when rank 0 says so: before, it would miss them. Or when it does not."""
        self._thread.join(LAST_ORDER_S)
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        try:
            while not self._closing.wait(POLL_S):
                while self._store.check([f"order/{number}"]):
                    self._follow(number, json.loads(self._store.get(f"order/{number}")))
                    number += 1
                self._tell()
        except RuntimeError:  # the store is gone, and the job with it
            pass
        self._end_all()

    def _follow(self, number: int, order: dict) -> None:
        if "end" in order:
            self._closing.set()
            return
        if "stop" in order:
            self._stop(order["stop"])
            return
        try:
            self._processes[number], url = start(Launch(**order["start"]), self._host, self._key)
            answer = {"url": url}
        except (UserError, OSError) as error:
            answer = {"error": str(error)}
        self._store.set(f"began/{number}", json.dumps(answer))

    def _stop(self, number: int) -> None:
        if number not in self._stops:
            self._stops[number] = in_a_thread(self._processes[number].stop)  # which takes seconds

    def _tell(self) -> None:
        for number, process in self._processes.items():
            if process.exit_code is not None:
                self._store.set(f"ended/{number}", str(process.exit_code))
        for number, stop in list(self._stops.items()):
            if stop.done():
                self._store.set(f"stopped/{number}", "")
                del self._stops[number], self._processes[number]

    def _end_all(self) -> None:
        for number in self._processes:
            self._stop(number)
        for stop in self._stops.values():
            stop.result()
        with contextlib.suppress(RuntimeError):
            self._store.set(GONE, "")


class Orders:
    """Rank 0's side of a keeper."""

    def __init__(self, store: Store, node: str):
        self._store, self._node, self._count = store, node, 0

    def give(self, order: dict) -> int:
        """Its number."""
        self._store.set(f"order/{self._count}", json.dumps(order))
        self._count += 1
        return self._count - 1

    async def start(self, launch: Launch) -> tuple[KeptProcess, str]:
        """The process, and its URL. Raises UserError: the node cannot begin it."""
        number = self.give({"start": asdict(launch)})
        deadline = time.monotonic() + ANSWER_S
        while (said := self.read(f"began/{number}")) is None:
            if time.monotonic() > deadline or self.gone:
                raise UserError(f"node {self._node} did not begin to start a server within {ANSWER_S:g} s")
            await asyncio.sleep(POLL_S)
        answer = json.loads(said)
        if "error" in answer:
            raise UserError(f"node {self._node} cannot start a server: {answer['error']}")
        return KeptProcess(self, number, Path(launch.log)), answer["url"]

    def read(self, key: str) -> str | None:
        """None: the node has not said so."""
        return self._store.get(key).decode() if self._store.check([key]) else None

    @property
    def gone(self) -> bool:
        return self._store.check([GONE])


class KeptProcess:
    """A server process of another node; to be used as a ServerProcess."""

    def __init__(self, orders: Orders, number: int, log: Path):
        self._orders, self._number, self.log = orders, number, log

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        code = self._orders.read(f"ended/{self._number}")
        return None if code is None else int(code)

    def stop(self) -> None:
        self._orders.give({"stop": self._number})
        deadline = time.monotonic() + ANSWER_S + STOP_S
        while self._orders.read(f"stopped/{self._number}") is None and not self._orders.gone:
            if time.monotonic() > deadline:  # it ends with the job's last rank there
                return
            time.sleep(POLL_S)

    def last_words(self) -> str:
        return end_of(self.log)
