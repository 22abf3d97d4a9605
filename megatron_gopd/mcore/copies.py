"""Copies between a device and host memory, beside what the device computes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # target, source: [bytes] uint8


class Copies:
    """Of a process, one after the other. Here each is over when it has been asked for: on a CPU nothing goes beside."""

    def __init__(self):
        self._waited_s, self._asked = 0.0, False

    def begin(self, pairs: Iterable[Pair]) -> object:
        """Copy when all that was asked of the device before is done. Returns what `wait` takes."""
        start, self._asked = time.perf_counter(), True
        for target, source in pairs:
            target.copy_(source)
        self._waited_s += time.perf_counter() - start
        return None

    def wait(self, begun: object) -> None:
        """Whatever is asked of the device from now on finds the copies made."""

    def keep(self, source: Tensor) -> None:
        """What is being copied may be freed by now, and its memory is used again when the copy is done."""

    def finish(self) -> None:
        """Return when all copies are done: their memory is free, for other processes too."""

    def take_waited_s(self) -> float | None:
        """Seconds since the last call in which computation stood still for copies; None: none has been asked for."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited if self._asked else None


class StreamCopies(Copies):
    """On a stream of their own. `cuda`: torch.cuda, or what stands for it."""

    def __init__(self, cuda=torch.cuda):
        super().__init__()
        self._cuda, self._stream = cuda, cuda.Stream()
        self._waits: list[tuple] = []  # events around each wait of the computation

    def begin(self, pairs: Iterable[Pair]) -> object:
        self._asked = True
        self._stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return self._stream.record_event()

    def wait(self, begun: object) -> None:
        computing = self._cuda.current_stream()
        before = computing.record_event(self._cuda.Event(enable_timing=True))
        computing.wait_event(begun)
        self._waits.append((before, computing.record_event(self._cuda.Event(enable_timing=True))))

    def keep(self, source: Tensor) -> None:
        source.record_stream(self._stream)

    def finish(self) -> None:
        start = time.perf_counter()
        self._stream.synchronize()
        self._waited_s += time.perf_counter() - start

    def take_waited_s(self) -> float | None:
        for before, after in self._waits:
            after.synchronize()
            self._waited_s += before.elapsed_time(after) / 1000
        self._waits.clear()
        return super().take_waited_s()


@functools.cache
def copies() -> Copies:
    """Those of this process."""
    return StreamCopies() if torch.cuda.is_available() else Copies()
