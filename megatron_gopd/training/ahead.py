"""What of the data is under way ahead of the steps, and what a step trains on."""

from __future__ import annotations

import threading
import zlib

from megatron_gopd.config import Config
from megatron_gopd.data import PromptLoader
from megatron_gopd.rollout.admission import Admission, Pending
from megatron_gopd.rollout.stream import Asked


class Ahead:
    """A Feed (rollout/stream.py) of the run's prompts. On rank 0, whose loader alone moves on."""

    def __init__(self, config: Config, loader: PromptLoader, attempt: int):
        """`attempt`: how often the run has gone on from a checkpoint; prompts begun anew get other random numbers."""
        self.batch_size = config.data.batch_size
        self._config, self._loader, self._attempt = config, loader, attempt
        self._admission: Admission | None = None
        self._asked: dict[Pending, Asked] = {}  # in the data's order
        self._batch: set[Pending] = set()  # taken, of those
        self._step = 0  # that the batch is of
        self._lock = threading.RLock()

    def turn_to(self, step: int) -> list[Asked]:
        """See Feed.turn_to."""
        with self._lock:
            if self._admission is None:
                self._admission = self._begun_at(step)
            elif step > self._step:
                self._admission.update()
                self._asked = {key: asked for key, asked in self._asked.items() if key not in self._batch}
                self._batch = set()
            self._step, max_age = step, self._config.rollout.max_age
            return [self._asked[pending] for pending in self._admission.older_than(max_age)] if max_age else []

    @property
    def whole(self) -> bool:
        """See Feed.whole."""
        return self._admission.whole

    def draw(self) -> Asked | None:
        """See Feed.draw."""
        with self._lock:
            if not self._admission or not self._admission.room:
                return None
            number = self._loader.draw(self._held())
            if number is None:
                return None
            prompt = self._loader.prompts[number]
            pending = self._admission.begin(prompt.teacher if self._config.data.balance == "equal" else "")
            key = [self._config.run.seed, pending.own + 1, zlib.crc32(prompt.id.encode())]
            key += [self._attempt] if self._attempt else []
            self._asked[pending] = Asked(pending, number, prompt, key)
            return self._asked[pending]

    def finish(self, asked: Asked) -> None:
        """See Feed.finish."""
        with self._lock:
            self._admission.finish(asked.pending)

    def take(self) -> Asked | None:
        """See Feed.take."""
        with self._lock:
            pending = self._admission.take()
            if pending is None:
                return None
            self._batch.add(pending)
            self._asked[pending].early = pending.own - self._admission.version
            return self._asked[pending]

    def position_after(self, step: int) -> dict:
        """The loader's state from which to go on after `step`: what is not trained on by then begins anew, first."""
        with self._lock:
            trained = self._batch if step >= self._step else ()
            untrained = [asked.number for pending, asked in self._asked.items() if pending not in trained]
            return self._loader.state_dict(untrained)

    def _held(self) -> set[int]:
        """Numbers that do not begin now, so that no batch holds a prompt twice: those that may still come into this
        one, or are in it while it may still grow."""
        gone = self._batch if self.whole else ()
        return {asked.number for pending, asked in self._asked.items() if pending not in gone}

    def _begun_at(self, step: int) -> Admission:
        rollout = self._config.rollout
        return Admission(
            self.batch_size,
            rollout.max_staleness,
            over_sampling=rollout.over_sampling,
            window=rollout.order_window,
            version=step - 1,
            last=self._config.run.steps,
        )
