from __future__ import annotations

import ctypes
import os

import pytest

from megatron_gopd.runs import atomic, atomic_folder, write_link, write_text


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_text_replaces_text(tmp_path):
    write_text(tmp_path / "a.txt", "old and long")
    write_text(tmp_path / "a.txt", "né")
    assert (tmp_path / "a.txt").read_bytes() == "né".encode()
    assert names(tmp_path) == ["a.txt"]


def test_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_written_file_obeys_the_umask(tmp_path):
    write_text(tmp_path / "a.txt", "")
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_replaced(tmp_path):
    write_link(tmp_path / "latest", "one")
    write_link(tmp_path / "latest", "two")
    assert os.readlink(tmp_path / "latest") == "two"
    assert names(tmp_path) == ["latest"]


def test_a_folder_is_not_there_before_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "deep" / "model") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_text("w")
        assert not (tmp_path / "deep" / "model").exists()
    assert names(tmp_path / "deep") == ["model"]
    assert (tmp_path / "deep" / "model" / "sub" / "weights").read_text() == "w"


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("before", ["folder", "file", "link"])
def test_a_folder_takes_the_place_of_what_was_there(tmp_path, monkeypatch, before, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # a C library without renameat2
    there, target = tmp_path / "model", tmp_path / "target"
    target.mkdir()
    (target / "kept").touch()
    if before == "folder":
        there.mkdir()
        (there / "old").touch()
    elif before == "file":
        there.touch()
    else:
        there.symlink_to(target)
    with atomic_folder(there) as folder:
        (folder / "new").touch()
    assert names(there) == ["new"]
    assert not there.is_symlink()
    assert names(target) == ["kept"]
    assert names(tmp_path) == ["model", "target"]


@pytest.mark.parametrize("there_before", [True, False])
def test_a_block_that_raises_leaves_what_was_there_and_nothing_else(tmp_path, there_before):
    if there_before:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "old").touch()
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == (["model"] if there_before else [])
    assert not there_before or names(tmp_path / "model") == ["old"]


def test_where_names_cannot_be_exchanged_a_failed_rename_brings_the_old_folder_back(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(FileNotFoundError):
        atomic._exchange(tmp_path / "missing", tmp_path / "model")
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]
