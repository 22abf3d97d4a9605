"""Frozen models that wait in host memory until they are asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from megatron_gopd.mcore.model import Model
from megatron_gopd.mcore.offload import Offloader


class Turns:
    """One after the other is on the device; of those that come ahead, the next on its way while one is asked."""

    def __init__(self):
        self._waiting: dict[str, Offloader] = {}
        self._ahead: list[str] = []  # in the order in which they were added
        self._next: list[str] = []

    def send_away(self, name: str, model: Model, *, ahead: bool) -> None:
        """`ahead`: it comes back while what is before it computes."""
        self._waiting[name] = Offloader(model.module.parameters, frozen=True)
        self._waiting[name].release()
        if ahead:
            self._ahead.append(name)

    def prepare(self) -> None:
        """The first is likely to be asked soon: it may come."""
        for name in self._ahead[:1]:
            self._waiting[name].fetch()

    @contextlib.contextmanager
    def of(self, names: Iterable[str]) -> Iterator[None]:
        """Within the block they are asked in this order; after it, all are away."""
        self._next = [name for name in names if name in self._ahead]
        try:
            yield
        finally:
            self._next = []
            for offloader in self._waiting.values():
                offloader.release()

    @contextlib.contextmanager
    def resident(self, name: str) -> Iterator[None]:
        """Within the block it is on the device."""
        with self._waiting[name].resident() if name in self._waiting else contextlib.nullcontext():
            if name in self._next:
                self._next = self._next[self._next.index(name) + 1 :]
                for following in self._next[:1]:
                    self._waiting[following].fetch()
            yield
