"""Whether a step can still end, once the job has been told to."""

from __future__ import annotations

import time

from megatron_gopd.errors import UserError
from megatron_gopd.training.stop import StopRequest


class NoTimeError(UserError):
    """What is under way would take longer than the job is there."""


class Grace:
    """Knows how long steps take."""

    def __init__(self, seconds: float | None, stop: StopRequest):
        """`seconds` after SIGTERM in which a step may end; None: it always may."""
        self._seconds, self._stop = seconds, stop
        self._began: float | None = None  # the step under way
        self._last = 0.0  # seconds of the last

    def begins(self) -> None:
        """A step does."""
        self._began = time.monotonic()

    def ended(self) -> None:
        """The step has; what comes until the next has no length that is known."""
        self._last, self._began = time.monotonic() - self._began, None

    def look(self) -> None:
        """Raises NoTimeError: what is under way would not end in time, as long as the last step took."""
        if self._seconds is None or self._stop.terminated_at is None:
            return
        now = time.monotonic()
        end = now if self._began is None else max(now, self._began + self._last)
        if end > self._stop.terminated_at + self._seconds:
            raise NoTimeError(f"what is under way would not end within checkpoint.grace_s ({self._seconds:g})")
