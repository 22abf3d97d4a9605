"""SIGUSR1 and SIGTERM end a run after the step, on all ranks at the same one."""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

from megatron_gopd.errors import STOP_SIGNALS


class StopRequest:
    """Notes the signals within the block; before and after it they do what they did."""

    def __enter__(self):
        self._received: signal.Signals | None = None
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
        self._received = signal.Signals(number)
