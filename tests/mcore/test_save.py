"""What becomes of a model that cannot be written."""

from __future__ import annotations

import contextlib
import errno
import resource

import pytest
import torch

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.save import copy_side_files, new_folder, write_weights


@contextlib.contextmanager
def small_files():
    """No file may grow beyond 100 bytes: not the log that pytest may write to either, so for the block alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_safetensors_too_say_by_number_why_they_cannot_write(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(OSError) as caught, small_files():
        write_weights(iter([("a", torch.ones(300))]), tmp_path, "float32", 10_000)
    assert caught.value.errno == errno.EFBIG


def test_a_link_is_the_users_also_where_it_leads_nowhere(tmp_path):
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk" / "model")
    with pytest.raises(UserError, match="model exists; name a new folder"), new_folder(link):
        pass
    assert link.is_symlink()


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/model cannot be written: "), new_folder(tmp_path / "file" / "model"):
        pass


def test_further_chat_templates_are_carried_along(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    target.mkdir()
    copy_side_files(source, target)
    assert (target / "additional_chat_templates" / "tools.jinja").read_text() == "{{ tools }}"
