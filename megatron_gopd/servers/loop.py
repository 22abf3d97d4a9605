"""Requests in the background: an event loop in a thread, so that answers arrive while the caller computes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class Background:
    """An asyncio event loop that runs until close()."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Begin `coroutine`; it goes on by itself."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result, or what it raises."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:  # also an interrupt of the waiting thread
            future.cancel()
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Cancel what is under way, run `last`, and end the thread."""
        if self._loop.is_closed():
            return
        self.run(_cancel_all())
        if last:
            self.run(last())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def in_a_thread(function: Callable[[], Result]) -> Future[Result]:
    """Begin `function`, which may block for ever: this process ends without it."""
    begun: Future[Result] = Future()

    def run() -> None:
        try:
            begun.set_result(function())
        except BaseException as error:
            begun.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return begun


async def _cancel_all() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
