"""Scorers that score while others go on: a job's own models beside servers, which are stood in for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.config.models import Scorer
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.errors import UserError

WHO = {"teachers.here": "megatron", "teachers.away": "sglang"}


@pytest.fixture
def scorers(monkeypatch):
    """Of a job whose teacher `away` is behind servers; what it does is noted in `.did`."""
    from megatron_gopd.policies import scorers as module

    settings = {who: Scorer(model=who, engine=engine) for who, engine in WHO.items()}
    made, teachers = module.Scorers.__new__(module.Scorers), dict.fromkeys(("here", "away"))
    made.config = SimpleNamespace(scorers=lambda: settings, teachers=teachers, extrapolates=lambda: False)
    made._turns = module.Turns()
    made.did, made._under_way, made.answers = [], [], [np.float32([-1, -2])]
    servers = SimpleNamespace(ask=lambda rows, names: made.did.append(("asked", *names)) or (lambda: made.answers))
    made._served = {module._identity(settings["teachers.away"]): servers}
    answer = lambda asked: made.did.append(("scored", *asked.names)) or [np.float32([-3, -4])]  # noqa: E731
    monkeypatch.setattr(made, "_in_this_job", answer)
    return made


def trajectory(teacher: str) -> Trajectory:
    prompt = Prompt(teacher, [], None, teacher, [1], [1], [1])
    return Trajectory(prompt, 0, np.ones(2, np.int32), np.zeros(2, np.float32), "stop")


def test_servers_are_asked_first_and_waited_for_last(scorers):
    chunk = [trajectory("here"), trajectory("away")]
    scorers.score(chunk)
    assert [what for what, _ in scorers.did] == ["asked", "scored"]
    assert chunk[0].teacher_logprobs.tolist() == [-3, -4] and chunk[1].teacher_logprobs is None
    scorers.wait()
    assert chunk[1].teacher_logprobs.tolist() == [-1, -2]


def test_each_chunk_is_waited_for_once(scorers):
    scorers.score([trajectory("away")])
    scorers.wait()
    scorers.answers = None
    scorers.wait()


def test_what_servers_gave_is_looked_at(scorers):
    scorers.answers = [np.float32([-1, np.nan])]
    scorers.score([trajectory("away")])
    with pytest.raises(UserError, match=r"teachers.away .* gave log-prob nan to response token 1"):
        scorers.wait()
