"""Which prompts may begin, and which of them a step trains on, where responses are sampled ahead of the steps.

Pure: without I/O, clocks or threads, so that a run and a simulation of it share the rule.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from math import ceil
from operator import attrgetter


@dataclass(eq=False)
class Pending:
    """A prompt that has begun and is not trained on yet."""

    group: str  # whose order is kept by itself: the teacher, where data.balance is equal
    place: int  # in the order in which those of the group began
    own: int  # version of the weights that would train on it, were batches the data's own
    version: int  # of the weights under which it began
    finished: bool = False


@dataclass
class _Order:
    """Of one group: the prompts pending, in the data's order, and the places in batches that wait for them."""

    begun: int = 0
    pending: list[Pending] = field(default_factory=list)  # by place, and so by version
    slots: list[int] = field(default_factory=list)  # versions that train, ascending; as many as are pending

    def remove(self, prompt: Pending) -> None:
        """It is in the batch: the first slot is its."""
        del self.pending[bisect_left(self.pending, prompt.place, key=attrgetter("place"))], self.slots[0]


class Admission:
    """A step of `batch_size` prompts trains with weights `version`, which it makes into `version` + 1.

    - A prompt that begins under `version` is trained on under `version` + `max_staleness` at the latest.
    - A batch is of those that finished first, unless another would then come too late, whose end is waited for.
    - It holds as many of each group as the data's own batch does, and overtaking ends at `window` prompts of the group.
    """

    def __init__(
        self,
        batch_size: int,
        max_staleness: int,
        *,
        over_sampling: float = 1.0,
        window: int | None = None,
        version: int = 0,
        last: int | None = None,
    ):
        """
        Args:
            over_sampling: prompts pending, of those that strictly suffice for steps without a pause.
            window: None: all that are pending.
            version: of the weights at the start, under which nothing is pending.
            last: version that nothing is trained under any more; None: there is none.
        """
        self.batch_size, self.max_staleness, self.version = batch_size, max_staleness, version
        self._window = window or (max_staleness + 1) * batch_size
        self._most = ceil(over_sampling * max(1, max_staleness) * batch_size)
        self._first, self._begun, self._taken = version, 0, 0
        self._all = None if last is None else (last - version) * batch_size
        self._orders: dict[str, _Order] = {}
        self._finished: list[Pending] = []  # in the order in which they did

    @property
    def room(self) -> int:
        """How many more prompts may begin now."""
        most = min((self.max_staleness + 1) * self.batch_size - self._taken, self._most)
        room = most - sum(len(order.pending) for order in self._orders.values())
        return max(0, room if self._all is None else min(room, self._all - self._begun))

    @property
    def whole(self) -> bool:
        """Whether the step has its batch."""
        return self._taken == self.batch_size

    def begin(self, group: str = "") -> Pending:
        """The next prompt in the data's order begins. Only where there is room."""
        assert self.room, "no prompt may begin"
        order = self._orders.setdefault(group, _Order())
        own = self._first + self._begun // self.batch_size
        prompt = Pending(group, order.begun, own, self.version)
        order.pending.append(prompt)
        order.slots.append(own)
        order.begun, self._begun = order.begun + 1, self._begun + 1
        return prompt

    def finish(self, prompt: Pending) -> None:
        """All its responses are there."""
        prompt.finished = True
        self._finished.append(prompt)

    def take(self) -> Pending | None:
        """The next prompt of the step's batch; None: it is whole, or has to wait for another to finish."""
        reach = {group: self._reach(order) for group, order in self._orders.items()}
        for number, prompt in enumerate(self._finished):
            if prompt.place <= reach[prompt.group]:
                del self._finished[number]
                self._orders[prompt.group].remove(prompt)
                self._taken += 1
                return prompt
        return None

    def update(self) -> None:
        """The step has trained on its batch: the weights are one version on."""
        assert self.whole, "a step trains on a whole batch"
        self.version, self._taken = self.version + 1, 0

    def older_than(self, max_age: int) -> list[Pending]:
        """Those still under way after `max_age` updates."""
        every = (prompt for order in self._orders.values() for prompt in order.pending)
        return [prompt for prompt in every if not prompt.finished and self.version - prompt.version >= max_age]

    def _reach(self, order: _Order) -> int:
        """The last place of a group that the next of its slots in this batch may go to; -1: it has none.

        Whoever is overtaken moves one slot back. The first who would get there too late is the last who may be taken.
        """
        if not order.slots or order.slots[0] > self.version:
            return -1
        pending, slots = order.pending, order.slots
        last, first = pending[0].place + self._window - 1, 0
        while first < len(pending):  # those of one version, which have one deadline
            version = pending[first].version
            after = bisect_right(pending, version, key=attrgetter("version"))
            late = max(first, bisect_right(slots, version + self.max_staleness) - 1)
            if late < min(after, len(slots) - 1):
                return min(pending[late].place, last)
            first = after
        return last
