"""The folder of kept trajectories."""

from __future__ import annotations

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from megatron_gopd.runs.trajectories import TrajectoryFolder, keep_up_to, steps_kept


def table(values: int = 20_000) -> pyarrow.Table:
    floats = pyarrow.array([np.random.default_rng(0).random(values, np.float32)], pyarrow.list_(pyarrow.float32()))
    return pyarrow.table({"id": ["p"], "entropy": floats})


def test_a_file_a_step(tmp_path):
    folder = TrajectoryFolder(tmp_path / "trajectories", max_mb=1)
    for step in (1, 2):
        folder.write(step, table())
    assert [path.name for path in steps_kept(tmp_path / "trajectories").values()] == [
        "step-00000001.parquet",
        "step-00000002.parquet",
    ]


def test_what_is_read_is_what_was_written(tmp_path):
    TrajectoryFolder(tmp_path / "t", max_mb=1).write(1, table())
    assert pyarrow.parquet.read_table(steps_kept(tmp_path / "t")[1]).to_pylist() == table().to_pylist()


def test_the_oldest_steps_go_first_and_the_bound_holds(tmp_path):
    folder = TrajectoryFolder(tmp_path / "t", max_mb=0.2)
    for step in range(1, 8):
        folder.write(step, table())
        assert sum(path.stat().st_size for path in (tmp_path / "t").iterdir()) <= 200_000
    assert list(steps_kept(tmp_path / "t"))[-1] == 7
    assert 1 < len(steps_kept(tmp_path / "t")) < 7


def test_what_an_earlier_attempt_left_counts(tmp_path):
    TrajectoryFolder(tmp_path / "t", max_mb=1).write(1, table())
    TrajectoryFolder(tmp_path / "t", max_mb=0.1).write(2, table())
    assert list(steps_kept(tmp_path / "t")) == [2]


def test_a_step_above_the_bound_is_not_kept_and_told_once(tmp_path, capsys):
    folder = TrajectoryFolder(tmp_path / "t", max_mb=0.001)
    folder.write(1, table())
    folder.write(2, table())
    assert steps_kept(tmp_path / "t") == {}
    assert capsys.readouterr().out.count("logging.trajectories.max_mb (0.001)") == 1


@pytest.mark.parametrize("step", [0, 2])
def test_later_steps_are_removed(tmp_path, step):
    folder = TrajectoryFolder(tmp_path / "t", max_mb=1)
    for each in (1, 2, 3):
        folder.write(each, table(10))
    keep_up_to(tmp_path / "t", step)
    assert list(steps_kept(tmp_path / "t")) == list(range(1, step + 1))
