"""What the loop asks of a rollout engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.rollout.sampling import Response


class Exports(Protocol):
    """A policy that all ranks hold together: what is asked of it is collective."""

    def export(self, receivers: Collection[int] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Its weights, under their Hugging Face names; `receivers`: ranks that get them, where not all need to."""

    senders: list[int]
    """The ranks of which each sends a part of it; collective where it is asked first."""

    def export_part(self) -> Iterator[tuple[str, Tensor]]:
        """Of its weights, what this rank sends, or draws along with one that does: to be drawn whole on every rank."""

    def score(self, rows: Sequence[Row], temperature: float) -> list[np.ndarray]:
        """Log-prob of every response token: [response] float32 a row, nats."""


class Source(Protocol):
    """Where the batches of a loop come from: a RolloutEngine, or others with these of its methods."""

    def start(self, policy: Exports, logs: Path) -> None: ...

    def generate(self, prompts: list[Prompt], step: int) -> Iterator[list[Trajectory]]: ...

    def close(self) -> None: ...


class RolloutEngine(Protocol):
    """Every method is collective over all ranks, and raises UserError for what a user can mend."""

    weight_version: int
    """of the weights it samples with: how many updates of the student they have seen"""

    def start(self, policy: Exports, logs: Path) -> None:
        """Start or find servers, where the engine has them, and give them the initial weights, version 0.

        To be called once, before anything else; logs go to the folder `logs`.
        """

    def generate(
        self, prompts: list[Prompt], step: int, *, samples: int | None = None, max_tokens: int | None = None
    ) -> Iterator[list[Trajectory]]:
        """Sample responses to each prompt; yield finished trajectories as they come.

        samples and max_tokens default to the configuration's samples_per_prompt and max_response_tokens. An engine of
        servers begins at the call, and hands out what is finished first.

        Every rank passes the same prompts and draws the same chunks in the same order. Where the engine has seeds,
        (seed, step, prompt id, sample) decide the random numbers of a trajectory, not the rank, nor the batch it is
        decoded in.
        """

    def decode(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Response]:
        """The most likely response to each prompt, given as token ids."""

    def logprobs(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Log-prob of every response token at temperature 1: [response] float32 a row, nats."""

    def sync(self, policy: Exports, version: int | None = None) -> None:
        """Take over the policy's weights. `version` names them; default: one more than the last."""

    def release(self) -> None:
        """Give away GPU memory that is shared with the student, until weights or responses are asked for."""

    def close(self) -> None:
        """End whatever was started."""
