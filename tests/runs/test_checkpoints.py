from __future__ import annotations

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.runs import write_manifest
from megatron_gopd.runs.checkpoints import folder_of, newest_whole, prune, remove_unfinished


def write(root, step: int):
    folder = folder_of(root, step)
    folder.mkdir(parents=True)
    (folder / "shard").write_bytes(bytes(100))
    write_manifest(folder, {"step": step})
    return folder


def names(root) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_is_found_by_its_number(tmp_path):
    for step in (9, 100, 20):
        write(tmp_path, step)
    assert newest_whole(tmp_path).step == 100


@pytest.mark.parametrize("root", ["", "not there"])
def test_without_any_there_is_none(tmp_path, root):
    assert newest_whole(tmp_path / root) is None


def test_a_damaged_newest_is_told_and_set_aside_and_the_one_before_is_used(tmp_path, capsys):
    for step in (10, 20, 30):
        write(tmp_path, step)
    (folder_of(tmp_path, 30) / "shard").write_bytes(bytes(50))
    (folder_of(tmp_path, 20) / "manifest.json").unlink()
    assert newest_whole(tmp_path).path == folder_of(tmp_path, 10)
    assert names(tmp_path) == ["damaged-step-00000020", "damaged-step-00000030", "step-00000010"]
    told = capsys.readouterr().out
    assert "shard: 50 bytes instead of 100" in told
    assert "step-00000020 has no manifest.json" in told


def test_where_all_are_damaged_nothing_starts_from_scratch_by_itself(tmp_path):
    for step in (1, 2):
        (write(tmp_path, step) / "shard").unlink()
    with pytest.raises(
        UserError, match=r"(?s)no checkpoint of this run can be used.*start anew with checkpoint.resume"
    ) as e:
        newest_whole(tmp_path)
    assert str(e.value).count("shard: No such file") == 2
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_the_newest_stay(tmp_path):
    for step in range(1, 12):
        write(tmp_path, step)
    prune(tmp_path, 2)
    assert names(tmp_path) == ["step-00000010", "step-00000011"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    write(tmp_path, 1)
    (tmp_path / ".step-00000002-0a1b").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["step-00000001"]
