from __future__ import annotations

import pytest

from megatron_gopd.runs import DamagedError, check_manifest, read_manifest, write_manifest
from megatron_gopd.runs.manifest import write_digest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "shard").write_bytes(bytes(1000))
    (tmp_path / "config.json").write_text("{}")
    write_manifest(tmp_path, {"step": 3})
    return tmp_path


def test_a_whole_folder_passes_and_says_what_it_is(folder):
    assert check_manifest(folder) == read_manifest(folder) == {"step": 3}


def test_a_flipped_bit_is_found(folder):
    shard = folder / "state" / "shard"
    content = bytearray(shard.read_bytes())
    content[500] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedError, match="1 of 2 files.*state/shard: its checksum differs"):
        check_manifest(folder)


def test_a_missing_and_a_short_file_are_found_together(folder):
    (folder / "config.json").unlink()
    (folder / "state" / "shard").write_bytes(bytes(10))
    with pytest.raises(DamagedError, match="config.json: No such file.*state/shard: 10 bytes instead of 1000"):
        check_manifest(folder)


def test_a_folder_without_a_manifest_is_not_complete(tmp_path):
    with pytest.raises(DamagedError, match="has no manifest.json"):
        check_manifest(tmp_path)


NONE = [
    '{"about": ',
    "[]",
    '{"files": {}}',
    '{"about": [], "files": {}}',
    '{"about": {}, "files": {"a": {"bytes": 1}}}',
]


@pytest.mark.parametrize("text", NONE)
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match="manifest.json"):
        read_manifest(tmp_path)


def test_a_change_in_the_manifest_itself_is_found(folder):
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 3', '"step": 7'))
    with pytest.raises(DamagedError, match="manifest.json is damaged: its checksum of itself differs"):
        read_manifest(folder)


def test_a_digest_left_beside_its_file_is_taken_over(folder):
    write_digest(folder / "state" / "shard")
    (folder / "state" / "shard").write_bytes(bytes(999) + b"1")
    write_manifest(folder, {})
    assert not list(folder.rglob("*.sha256"))
    with pytest.raises(DamagedError, match="state/shard: its checksum differs"):
        check_manifest(folder)
