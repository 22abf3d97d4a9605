"""Where metrics go: metrics.jsonl always; wandb and tensorboard where the configuration asks for them."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable

from megatron_gopd.config import Config
from megatron_gopd.runs.folder import RunFolder
from megatron_gopd.runs.gallery import text_of


class Sink(Protocol):
    """Takes the metrics of one step after another."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class Gallery(Protocol):
    """A sink that shows kept trajectories too: rows as training.kept makes them."""

    def show(self, step: int, rows: list[dict]) -> None: ...


class JsonlSink:
    """One row a step: {"step": 3, "loss": 0.5, ...}."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append the row; ValueError names a metric that is not finite, and the row is not written."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"step {step}: the metric {name!r} is {value}")
        # one write a row, at once: whenever the process is killed, the file ends with a whole line
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())  # a checkpoint of this step may follow: it must not survive its row

    def close(self) -> None:
        self._file.close()


class TensorboardSink:
    """Event files in `folder`, after `done` steps of earlier attempts; each step can be read at once.

    What those have logged of later steps is struck out: these come again.
    """

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, rows: list[dict]) -> None:
        """Text of each kept trajectory, under its teacher and why it was kept."""
        for row in rows:
            self._writer.add_text(
                "/".join(filter(None, ("trajectories", row["teacher"], row["kept_as"]))), text_of(row), step
            )

    def close(self) -> None:
        self._writer.close()


class Sinks:
    """Several sinks as one. An error in any of them surfaces; close() closes every one all the same."""

    def __init__(self) -> None:
        self._sinks: list[Sink] = []
        self._closing = ExitStack()

    def add(self, sink: Sink) -> None:
        self._sinks.append(sink)
        self._closing.callback(sink.close)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for sink in self._sinks:
            sink.log(step, metrics)

    def show(self, step: int, rows: list[dict]) -> None:
        """Kept trajectories, to the sinks that show them."""
        for sink in self._sinks:
            if isinstance(sink, Gallery):
                sink.show(step, rows)

    def close(self) -> None:
        self._closing.close()

    def __enter__(self) -> Sinks:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def open_sinks(config: Config, folder: RunFolder) -> Sinks:
    """The sinks `config.logging` asks for, metrics.jsonl first: what it refuses reaches no other sink."""
    sinks = Sinks()
    try:
        sinks.add(JsonlSink(folder.metrics))
        if config.logging.wandb:
            from megatron_gopd.runs.wandb_sink import WandbSink

            sinks.add(WandbSink(config, folder))
        if config.logging.tensorboard:
            sinks.add(TensorboardSink(folder.path / "tensorboard", folder.done))
    except BaseException:
        sinks.close()
        raise
    return sinks
