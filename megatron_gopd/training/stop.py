"""SIGUSR1, SIGTERM and Ctrl-C end a run after the step, on all ranks at the same one; a second Ctrl-C at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time

import torch
import torch.distributed as dist

from megatron_gopd.errors import STOP_SIGNALS
from megatron_gopd.ranks import is_first

LOGGER = logging.getLogger(__name__)
ECHO_S = 5.0  # a batch system and the launcher each send SIGTERM, for one end
AGAIN = (signal.SIGTERM, signal.SIGINT)  # of which the second means: now


class StopRequest:
    """Notes the signals within the block; before and after it they do what they did."""

    def __enter__(self):
        self._received: signal.Signals | None = None
        self._asked: signal.Signals | None = None  # the first of AGAIN
        self.terminated_at: float | None = None  # by time.monotonic(), the first SIGTERM
        self._process = os.getpid()
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> str | None:
        """The name of a signal that any rank has received, on every rank; None without one. Collective."""
        number = torch.tensor(self._received or 0)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)  # ranks hear of it at different moments
        return signal.Signals(number.item()).name if number.item() else None

    def _note(self, number: int, _) -> None:
        received = signal.Signals(number)
        if self._asked and number in AGAIN:
            self._again(received)
            return
        if self._received is None:
            self._tell(received)
        self._received = self._received or received
        if received == signal.SIGTERM:
            self.terminated_at = self.terminated_at or time.monotonic()
        if number in AGAIN:
            self._asked, self._asked_at = received, time.monotonic()
            for other in AGAIN:
                if not other == received == signal.SIGTERM:
                    signal.signal(other, signal.SIG_DFL)  # Python's would wait for the end of a collective

    def _again(self, number: signal.Signals) -> None:
        if time.monotonic() - self._asked_at > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _tell(self, received: signal.Signals) -> None:
        """By the file descriptor: the signal may have come in the midst of a print."""
        if is_first() and os.getpid() == self._process:  # a forked writer of checkpoints hears it, too
            again = "; Ctrl-C again ends it at once" if received == signal.SIGINT else ""
            with contextlib.suppress(OSError):
                os.write(2, f"\n{received.name}: the run ends after this step{again}\n".encode())
