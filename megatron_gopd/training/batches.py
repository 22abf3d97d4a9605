"""Batches of trajectories in the order of steps."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_gopd.config import Config
from megatron_gopd.data import PromptLoader, Trajectory
from megatron_gopd.ranks import on_first
from megatron_gopd.rollout import Source
from megatron_gopd.runs import interruption
from megatron_gopd.training.ahead import Ahead


class Batches:
    """What each step trains on, and where in the data it starts.

    Without rollout.max_staleness a batch is the data's next. With it, servers sample on while steps train, and a batch
    is of what they have finished; rank 0 alone knows what is under way.
    """

    def __init__(self, config: Config, loader: PromptLoader, source: Source):
        self._config, self._loader, self._source = config, loader, source
        self._ahead: Ahead | None = Ahead(config, loader, 0) if config.rollout.max_staleness else None
        self._attempt = 0
        self._step, self._drawn = 0, []  # numbers of the prompts of the step

    def of(self, step: int) -> Iterator[list[Trajectory]]:
        """The chunks of one step. Collective; draw all of them. Raises UserError: the step is to be given up."""
        for chunk in self._chunks(step):
            if self._config.checkpoint.grace_s:
                on_first(interruption.look)
            yield chunk

    def position_after(self, step: int) -> dict:
        """Where the data goes on after `step`, whether or not more of it is under way: plain JSON values. Of rank 0."""
        if self._ahead:
            return self._ahead.position_after(step) | {"attempt": self._attempt}
        return self._loader.state_dict(self._drawn if self._step > step else ())

    def go_on_from(self, position: dict) -> None:
        """Raises UserError: `position` is of other data."""
        self._loader.load_state_dict(position)
        self._attempt = position.get("attempt", 0) + 1
        if self._ahead:
            self._ahead = Ahead(self._config, self._loader, self._attempt)

    def _chunks(self, step: int) -> Iterator[list[Trajectory]]:
        if self._ahead:
            return self._source.stream(self._ahead, self._loader.prompts, step)
        self._step, self._drawn = step, self._loader.draw_batch()
        return self._source.generate([self._loader.prompts[number] for number in self._drawn], step)
