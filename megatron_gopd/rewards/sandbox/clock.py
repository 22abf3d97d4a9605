"""How long a program may run: processor seconds, which a busy machine does not use up, and far more wall time."""

from __future__ import annotations

import time

from megatron_gopd.rewards.sandbox.jail import Jail


class Clock:
    """Of one answer. `marked`: its output has a line for each test that has begun; else `start_test` tells it."""

    def __init__(self, jail: Jail, *, marked: bool = False):
        self._jail = jail
        self._marked = marked
        self._marks = 0
        self._all = self._test = self._now()

    def start_test(self) -> None:
        self._test = self._now()

    def is_late(self, output: bytes) -> bool:
        """Whether this test, or all of them, have taken more than their time."""
        if self._marked and (marks := output.count(b"\n")) != self._marks:
            self._marks = marks
            self.start_test()
        settings, (processor, wall) = self._jail.settings, self._now()
        return any(
            processor - then[0] > seconds or wall - then[1] > seconds * settings.wall_factor
            for then, seconds in ((self._test, settings.seconds_per_test), (self._all, settings.seconds))
        )

    def _now(self) -> tuple[float, float]:
        return self._jail.processor_seconds(), time.monotonic()
