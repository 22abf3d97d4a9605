"""A server of the simulation: how its responses grow while time passes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_gopd.rollout.admission import Pending


@dataclass(frozen=True)
class Speed:
    """Of one server: at most `slots` sequences at a time."""

    slots: int
    step_seconds: Callable[[float, float], float]  # (sequences, tokens that they hold together): a token for each
    prefill_seconds: Callable[[float], float]  # tokens


@dataclass(order=True)
class Growing:
    """A response under way: its tokens are those that the server's clock counts from `start` to `end`."""

    end: float
    start: float = field(compare=False)
    prompt: Pending = field(compare=False)
    context: float = field(compare=False)  # tokens of the prompt


@dataclass(frozen=True)
class Ended:
    """A response that is whole."""

    prompt: Pending
    tokens: float
    versions: float  # of the weights that sampled each token, their sum


class Server:
    """Its clock counts the tokens of a sequence that had been there all the time."""

    def __init__(self, speed: Speed) -> None:
        self._speed, self._now, self._clock, self._held = speed, 0.0, 0.0, 0.0
        self._growing: list[Growing] = []
        self._blocked = 0.0  # until then it computes prompts, or is paused
        self._updates: list[float] = []  # what the clock said as versions 1, 2, ... came
        self.busy_s = self.sequences_s = 0.0  # seconds with a sequence to decode; the same, times sequences
        self.next_end = math.inf  # when a response will be whole

    @property
    def free(self) -> int:
        return self._speed.slots - len(self._growing)

    def begin(self, prompt: Pending, tokens: float, context: float) -> None:
        """A response of `tokens` tokens to a prompt of `context`, at the time that advance() was told last."""
        heapq.heappush(self._growing, Growing(self._clock + tokens, self._clock, prompt, context))
        self._held += context
        self._block(self._speed.prefill_seconds(context))

    def advance(self, now: float) -> None:
        """To `now`, which is not after next_end."""
        if self._growing:
            self.busy_s += now - self._now
            self.sequences_s += (now - self._now) * len(self._growing)
            self._decode(now)
        self._now = now

    def ended(self) -> list[Ended]:
        """What is whole by now."""
        found = []
        while self._growing and self._growing[0].end <= self._clock:
            found.append(heapq.heappop(self._growing))
        return self._leave(found)

    def end(self, prompts: set[Pending]) -> list[Ended]:
        """Their responses, as they stand."""
        found = [one for one in self._growing if one.prompt in prompts]
        self._growing = [one for one in self._growing if one.prompt not in prompts]
        heapq.heapify(self._growing)
        return self._leave(found)

    def update(self, pause_s: float) -> None:
        """New weights: it pauses, computes its cache anew, and goes on."""
        self._updates.append(self._clock)
        self._block(pause_s + self._speed.prefill_seconds(self._held))

    def _leave(self, found: list[Growing]) -> list[Ended]:
        ended = [self._told(one) for one in found]
        self._held -= sum(one.context for one in found) + sum(one.tokens for one in ended)
        self._schedule()
        return ended

    def _told(self, one: Growing) -> Ended:
        end, began = min(one.end, self._clock), one.prompt.version
        newer = sum(end - max(one.start, came) for came in self._updates[began:])
        return Ended(one.prompt, end - one.start, began * (end - one.start) + newer)

    def _block(self, seconds: float) -> None:
        self._blocked = max(self._now, self._blocked) + seconds
        self._schedule()

    def _decode(self, now: float) -> None:
        before, (steps, seconds) = self._clock, self._to_next_end()
        if now >= self.next_end:
            self._clock = self._growing[0].end
        elif (passed := now - max(self._now, self._blocked)) > 0:
            self._clock += steps * min(1.0, passed / seconds)
        self._held += (self._clock - before) * len(self._growing)

    def _to_next_end(self) -> tuple[float, float]:
        """Decoding steps, and their seconds; a step's are linear in what the sequences hold."""
        count, steps = len(self._growing), self._growing[0].end - self._clock
        return steps, steps * self._speed.step_seconds(count, self._held + count * steps / 2)

    def _schedule(self) -> None:
        self.next_end = max(self._now, self._blocked) + self._to_next_end()[1] if self._growing else math.inf
