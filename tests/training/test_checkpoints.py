"""When a checkpoint is written, whose memory is whose."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

from megatron_gopd.training.checkpoints import Checkpoints


def test_servers_give_memory_away_before_the_optimizer_comes_back(one_rank, tmp_path, monkeypatch):
    said = []

    @contextlib.contextmanager
    def state(**_):
        said.append("the optimizer is here")
        yield {}

    job = SimpleNamespace(
        config=SimpleNamespace(checkpoint=SimpleNamespace(every=1)),
        rollout=SimpleNamespace(release=lambda: said.append("servers are away")),
        student=SimpleNamespace(state=state),
    )
    checkpoints = Checkpoints(job, tmp_path)
    monkeypatch.setattr(checkpoints, "_about", lambda step: {})
    monkeypatch.setattr(checkpoints._writer, "start", lambda *_, **__: None)
    checkpoints._begin(3)
    assert said == ["servers are away", "the optimizer is here"]
