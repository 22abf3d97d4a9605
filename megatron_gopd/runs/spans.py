"""Seconds by phase."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
_told: defaultdict[str, float] = defaultdict(float)


def tell(name: str, seconds: float) -> None:
    """Seconds that someone has measured whom no Spans was handed to: whoever takes next, of any, has them."""
    _told[name] += seconds


class Spans:
    """Wall-clock seconds of this process, summed by name.

    A span counts all that happens within it, so one opened inside another counts under both names.
    `on_enter(name)` is called at each entry, as for a progress bar.
    """

    def __init__(self, on_enter: Callable[[str], None] = lambda name: None) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._on_enter = on_enter
        self.latest = "start"  # the name of the span that was entered last

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """`with spans("train"):` adds the block's seconds, also when it raises."""
        self.latest = name
        self._on_enter(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def over(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the wait for each counts under `name`, the body of the loop over them does not."""
        iterator, end = iter(items), object()
        while True:
            with self(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item

    def of(self, name: str) -> float:
        """Seconds under `name` since the last take()."""
        return self._seconds.get(name, 0.0)

    def add(self, name: str, seconds: float) -> None:
        """Seconds that were measured otherwise."""
        self._seconds[name] += seconds

    def take(self) -> dict[str, float]:
        """Seconds by name since the last call, with those that were told; a span still open counts in the next."""
        seconds = Counter(self._seconds)
        seconds.update(_told)
        self._seconds.clear()
        _told.clear()
        return dict(seconds)
