"""Batches of prompts in an order that a resumed run continues exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence

import numpy as np

from megatron_gopd.data.trajectory import Prompt
from megatron_gopd.errors import UserError


class PromptLoader:
    """Endless batches of prompts; every epoch has its own permutation, drawn from (seed, epoch).

    A batch runs on into the next epoch rather than being short. What it holds already is left to the batch after it,
    so no batch holds a prompt twice, and every epoch still holds each prompt once.
    Raises UserError when a batch is larger than the data.
    """

    def __init__(self, prompts: list[Prompt], batch_size: int, seed: int):
        if batch_size > len(prompts):
            raise UserError(
                f"data.batch_size ({batch_size}) is larger than the number of prompts ({len(prompts)}); "
                f"set it to {len(prompts)} or less, or add prompts"
            )
        self.prompts, self.batch_size, self.seed = prompts, batch_size, seed
        self.epoch, self.position = 0, 0
        self._postponed: list[int] = []  # of this epoch, passed over at the seam: the next batch begins with them
        self._order = self._permutation()
        self._fingerprint = _fingerprint(prompts)

    def next_batch(self) -> list[Prompt]:
        """The next `batch_size` prompts, all different."""
        return [self.prompts[number] for number in self.draw_batch()]

    def draw_batch(self) -> list[int]:
        """The numbers of the next batch's prompts."""
        batch: dict[int, None] = {}
        for _ in range(self.batch_size):
            batch[self.draw(batch)] = None
        return list(batch)

    def draw(self, held: Collection[int] = ()) -> int | None:
        """The number of the next prompt that is not among `held`: those come later, in order. None: all are held."""
        if len(held) == len(self.prompts):
            return None
        for place, number in enumerate(self._postponed):
            if number not in held:
                return self._postponed.pop(place)
        while (number := self._next()) in held:
            self._postponed.append(number)
        return number

    def state_dict(self, again: Sequence[int] = ()) -> dict:
        """Where the next batch starts, and of which data; plain JSON values. `again`: numbers that come once more,
        first."""
        place = {"epoch": self.epoch, "position": self.position, "postponed": [*again, *self._postponed]}
        return place | self._data()

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken; UserError when it is of other prompts or another seed."""
        differing = [key for key, value in self._data().items() if state[key] != value]
        if differing:
            saved = ", ".join(f"{key} {state[key]}, here {self._data()[key]}" for key in differing)
            raise UserError(
                f"the checkpoint's position in the data cannot be continued: {saved}; "
                f"resume with the data and run.seed it was written with, or start a new run"
            )
        self.epoch, self.position, self._postponed = state["epoch"], state["position"], list(state["postponed"])
        self._order = self._permutation()

    def _next(self) -> int:
        if self.position == len(self.prompts):
            self.epoch, self.position = self.epoch + 1, 0
            self._order = self._permutation()
        self.position += 1
        return int(self._order[self.position - 1])

    def _data(self) -> dict:
        return {"prompts": len(self.prompts), "fingerprint": self._fingerprint, "seed": self.seed}

    def _permutation(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.prompts))


def _fingerprint(prompts: list[Prompt]) -> str:
    """Of what is asked, who teaches it and what is right, in order; not of ids, which may hold the place of a file."""
    digest = hashlib.sha256()
    for prompt in prompts:
        learned = [] if prompt.response_tokens is None else [prompt.response_tokens]
        about = [prompt.messages, prompt.teacher, prompt.label, prompt.tests, *learned]
        digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
