"""What the loop asks of a rollout engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from megatron_gopd.data.trajectory import Prompt, Trajectory


class Exports(Protocol):
    """A policy whose weights can be drawn under their Hugging Face names, by all ranks together."""

    def export(self) -> Iterator[tuple[str, Tensor]]: ...


class RolloutEngine(Protocol):
    def generate(
        self, prompts: list[Prompt], step: int, *, samples: int | None = None, max_tokens: int | None = None
    ) -> Iterator[list[Trajectory]]:
        """Sample responses to each prompt; yield finished trajectories as they come.

        samples and max_tokens default to the configuration's samples_per_prompt and max_response_tokens.

        Collective: every rank passes the same prompts and draws the same chunks in the same order. (seed, step,
        prompt id, sample) decide the random numbers of a trajectory, not the rank or the batch it is decoded in.
        """

    def sync(self, policy: Exports) -> None:
        """Take over the policy's weights. Collective."""
