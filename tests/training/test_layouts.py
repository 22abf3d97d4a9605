"""Two ranks distill as one does: the same trajectories, the same updates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ranks import on_ranks
from tests.training.runs_on_ranks import distill_all, metrics_of, two_teachers

LAYOUTS = {"dp": {}, "tp": {"tp": 2}}


@pytest.fixture(scope="module")
def two_ranks(chat_models, questions, tmp_path_factory) -> Path:
    """The folder of one run for each layout."""
    folder = tmp_path_factory.mktemp("two-ranks")
    trees = [two_teachers(chat_models, questions, folder, name, layout) for name, layout in LAYOUTS.items()]
    on_ranks(2, distill_all, trees=trees)
    return folder


@pytest.fixture(scope="module")
def alone(two_ranks, make_config, distill) -> list[dict]:
    config = make_config()
    distill(config)
    return metrics_of(Path(config.run.folder, "first", "metrics.jsonl"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_follow_one(two_ranks, alone, layout):
    rows = metrics_of(two_ranks / layout / "metrics.jsonl")
    assert len(rows) == len(alone)
    for row, expected in zip(rows, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_only_the_first_rank_writes_metrics_and_every_rank_its_log(two_ranks):
    attempt = two_ranks / "dp" / "logs" / "attempt-1"
    assert sorted(path.name for path in attempt.iterdir()) == ["rank-0.log", "rank-1.log"]
