"""Where metrics go: metrics.jsonl always; wandb and tensorboard where the configuration asks for them."""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.runs.atomic import write_text
from megatron_gopd.runs.folder import RunFolder
from megatron_gopd.runs.gallery import summary, text_of

WANDB_ID = "wandb-id"


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


class WandbSink:
    """A Weights & Biases run; its files are in the run folder's wandb/."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        import wandb

        settings = config.logging.wandb
        try:
            self._run = wandb.init(
                project=settings.project,
                name=config.run.name,
                id=_wandb_id(folder),
                resume="allow",
                mode=settings.mode,
                dir=folder.path,
                config=config.model_dump(mode="json", by_alias=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"logging.wandb: {error}\nMend that, set logging.wandb.mode to offline, or set logging.wandb to null"
            ) from error

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def show(self, step: int, rows: list[dict]) -> None:
        """A table of the step's kept trajectories."""
        import wandb

        cells = [list(summary(row).values()) for row in rows]
        self._run.log({"trajectories": wandb.Table(columns=list(summary(rows[0])), data=cells)}, step=step)

    def close(self) -> None:
        """Send what is left. Closed on the way out of an exception, the run is marked as failed."""
        self._run.finish(exit_code=1 if sys.exc_info()[0] else 0)


def _wandb_id(folder: RunFolder) -> str:
    """One for all attempts that continue each other, or every requeue would be another run."""
    path = folder.path / WANDB_ID
    if folder.resumed is None or not path.exists():
        write_text(path, uuid.uuid4().hex[:16])
    return path.read_text()


class TensorboardSink:
    """Event files in `folder`; each step can be read at once."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

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
            sinks.add(WandbSink(config, folder))
        if config.logging.tensorboard:  # a folder an attempt: tensorboard would draw two attempts as one curve
            sinks.add(TensorboardSink(folder.path / "tensorboard" / folder.logs.name))
    except BaseException:
        sinks.close()
        raise
    return sinks
