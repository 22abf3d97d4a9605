"""How much of scorers' hidden states is held at a time."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_gopd.data.trajectory import Prompt, Trajectory


def trajectory(teacher: str) -> Trajectory:
    return Trajectory(Prompt("p", [], None, teacher, [1], [1], [1]), 0, np.ones(4, np.int32), np.zeros(4), "stop")


class Scorers:
    """Hold of each teacher's rows one before the update; a rank may have one row at a time."""

    def __init__(self, batch):
        self.config = SimpleNamespace(teachers=("a", "b"), student=SimpleNamespace(layout=SimpleNamespace(tp=1, pp=1)))
        self.config.student.layout.span = lambda world, owner: range(world)
        self.budget, self.held, self.before = 4, [], []
        self.ahead = [self.made(batch[0]), self.made(batch[3])]

    def made(self, each: Trajectory):
        from megatron_gopd.policies.hidden_states import Held, Piece

        piece = Piece(each.prompt.teacher, [each], {"it": Held(torch.arange(4), torch.zeros(4, 1))})
        self.held.append(weakref.ref(piece))
        return piece

    def take(self):
        taken, self.ahead = self.ahead, []
        return taken

    def piece(self, teacher: str, taught: list[Trajectory]):
        self.before.append(sum(each() is not None for each in self.held))
        return self.made(*taught)

    def token_bytes(self, teacher: str) -> int:
        return 1

    token_bytes_held = token_bytes


@pytest.mark.usefixtures("alone")
def test_what_is_computed_within_the_update_comes_after_all_that_was_held_has_gone():
    from megatron_gopd.policies.distribution_payload import DistributionPayload

    batch = [trajectory(teacher) for teacher in "aaabbb"]
    scorers = Scorers(batch)
    portions = DistributionPayload(scorers).portions(batch)
    rows = [(portion.rows, portion.last) for portion in portions]
    assert sorted(rows) == [([n], n == rows[-1][0][0]) for n in range(6)]
    assert scorers.before == [0, 0, 0, 0]
