"""Batches of trajectories in the order of steps, the next one sampled while this one trains where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_gopd.config import Config
from megatron_gopd.data import PromptLoader, Trajectory
from megatron_gopd.rollout import Source


class Batches:
    """What each step trains on, and where in the data it starts."""

    def __init__(self, config: Config, loader: PromptLoader, source: Source):
        self._ahead, self._last = config.rollout.max_staleness, config.run.steps
        self._loader, self._source = loader, source
        self._under_way: dict[int, Iterator[list[Trajectory]]] = {}
        self._starts: dict[int, dict] = {}  # positions in the data, of steps that are not over

    def of(self, step: int) -> Iterator[list[Trajectory]]:
        """The chunks of one step. Collective; draw all of them.

        Under rollout.max_staleness: 1, the batch of the next step begins when this one is drawn: with the weights
        that sampled this one, which this step's update leaves one behind.
        """
        yield from self._under_way.pop(step, None) or self._begin(step)
        if self._ahead and step < self._last:
            self._under_way[step + 1] = self._begin(step + 1)

    def position_after(self, step: int) -> dict:
        """The loader's state from which the step after `step` draws, whether or not it has drawn already."""
        self._starts = {begun: state for begun, state in self._starts.items() if begun > step}
        return self._starts.get(step + 1) or self._loader.state_dict()

    def _begin(self, step: int) -> Iterator[list[Trajectory]]:
        self._starts[step] = self._loader.state_dict()
        return self._source.generate(self._loader.next_batch(), step)
