"""The curve of a run, drawn as it goes."""

from __future__ import annotations

import time
from pathlib import Path

from megatron_gopd.evaluation.report import plot_curve

AT_MOST_EVERY_S, SHARE = 10.0, 0.01  # of the run's time that drawing may take


class CurveSink:
    """Draws a metrics.jsonl, which a sink before this one writes, now and then and at the end."""

    def __init__(self, metrics: Path, target: Path) -> None:
        self._metrics, self._target = metrics, target
        self._drawn, self._took, self._new = time.monotonic(), 0.0, False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Of an evaluation before the first step there is nothing to draw."""
        if not step:
            return
        self._new = True
        if time.monotonic() - self._drawn > max(AT_MOST_EVERY_S, self._took / SHARE):
            self.draw()

    def draw(self) -> None:
        """Where there is anything new."""
        if not self._new:
            return
        begun = time.monotonic()
        plot_curve(self._metrics, self._target)
        self._drawn, self._new = time.monotonic(), False
        self._took = self._drawn - begun

    def close(self) -> None:
        self.draw()
