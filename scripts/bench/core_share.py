"""Which share of a core processes got while they wanted it: on a busy machine others have the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path


class CoreShare:
    """Of some processes, from the constructor on."""

    def __init__(self, pids: Collection[int]) -> None:
        self._pids = pids
        self._before = self._now()

    def get(self) -> float:
        ran, waited = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return ran / (ran + waited)

    def _now(self) -> tuple[int, int]:
        """Nanoseconds that their threads ran, and waited for a core."""
        ran = waited = 0
        for pid in self._pids:
            for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):  # it has ended
                    told = task.read_text().split()
                    ran, waited = ran + int(told[0]), waited + int(told[1])
        return ran, waited
