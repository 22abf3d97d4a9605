"""A router that is told which experts to take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.routing_replay import Replay, check_replay
from tests.tiny_models import save_tiny

SCORES = torch.tensor([[0.1, 0.5, 0.3, 0.2], [0.9, 0.1, 0.4, 0.2]])


def chosen_with(told) -> list[list[int]]:
    replay = Replay()
    replay.chosen = told
    values, taken = replay.get_replay_topk(SCORES, 2, None, None, lambda scores, k, **_: scores.topk(k, dim=1))
    assert torch.equal(values, SCORES.gather(1, taken))
    return taken.tolist()


def test_a_token_takes_the_experts_that_were_told_or_its_router_s_own():
    assert chosen_with(torch.tensor([[3, 0], [-1, -1]], dtype=torch.int16)) == [[3, 0], [0, 2]]


def test_without_any_every_token_takes_its_router_s_own():
    assert chosen_with(None) == [[1, 2], [0, 2]]


def test_a_dense_student_has_nothing_to_replay(tmp_path):
    folder = save_tiny(tmp_path, "qwen3-tied")
    student, rollout = SimpleNamespace(model=str(folder)), SimpleNamespace(replay_routing=True)
    with pytest.raises(UserError, match=rf"rollout.replay_routing: student.model \({folder}\) is dense"):
        check_replay(SimpleNamespace(student=student, rollout=rollout))
    rollout.replay_routing = False
    check_replay(SimpleNamespace(student=student, rollout=rollout))
