"""Metrics to Weights & Biases."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.runs.atomic import write_text
from megatron_gopd.runs.folder import RunFolder
from megatron_gopd.runs.gallery import summary

MEMORY = "wandb.json"  # in the run's folder: the wandb run's id, and the last step it has


class WandbSink:
    """One wandb run for all attempts that continue each other; its files are in the run folder's wandb/.

    wandb can only append: steps that an earlier attempt has logged, and that come again, are left out.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        import wandb

        asked = config.logging.wandb
        self._memory = folder.path / MEMORY
        earlier, last = _remembered(self._memory) if folder.done else (None, -1)
        self._id = asked.id or earlier or uuid.uuid4().hex[:16]
        self._last = last if self._id == earlier else -1
        self._logged = -1  # by this attempt
        self._remember()
        try:
            self._run = wandb.init(
                project=asked.project,
                entity=asked.entity,
                group=asked.group,
                tags=asked.tags,
                name=config.run.name,
                id=self._id,
                resume="allow",
                mode=asked.mode,
                dir=folder.path,
                config=config.model_dump(mode="json", by_alias=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"logging.wandb: {error}\nMend that, set logging.wandb.mode to offline, or set logging.wandb to null"
            ) from error

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step > self._last:
            self._run.log(metrics, step=step)
            self._last = self._logged = step
            self._remember()

    def show(self, step: int, rows: list[dict]) -> None:
        """A table of the step's kept trajectories."""
        import wandb

        if step == self._logged:
            cells = [list(summary(row).values()) for row in rows]
            self._run.log({"trajectories": wandb.Table(columns=list(summary(rows[0])), data=cells)}, step=step)

    def close(self) -> None:
        """Send what is left. Closed on the way out of an exception, the run is marked as failed."""
        self._run.finish(exit_code=1 if sys.exc_info()[0] else 0)

    def _remember(self) -> None:
        write_text(self._memory, json.dumps({"id": self._id, "step": self._last}))


def _remembered(memory: Path) -> tuple[str | None, int]:
    """Nothing, where wandb joins a run that has gone on without it."""
    if not memory.exists():
        return None, -1
    found = json.loads(memory.read_text())
    return found["id"], found["step"]
