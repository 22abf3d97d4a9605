"""The command that goes on with a run."""

from __future__ import annotations

import shlex
import sys

import pytest

from megatron_gopd.runs.again import command_again


@pytest.fixture
def started(monkeypatch, make_config):
    """started(*words, **sections) -> what is said to go on with."""

    def again(*words: str, **sections) -> list[str] | None:
        monkeypatch.setattr(sys, "orig_argv", list(words))
        found = command_again(make_config(**sections))
        return None if found is None else shlex.split(found)

    return again


def test_as_it_was_typed(started):
    words = ["python", "-m", "megatron_gopd", "train", "my run.yaml", "optimizer.lr=1e-5"]
    assert started(*words) == words


def test_a_script_is_called_without_its_interpreter(started):
    found = started("/opt/python", "/opt/megatron-gopd", "train", "x.yaml")
    assert found == ["/opt/megatron-gopd", "train", "x.yaml"]


def test_a_new_name_is_not_chosen_again(started):
    found = started("megatron-gopd", "train", "--new-name", "x.yaml", run={"name": "x-2", "steps": 3})
    assert found == ["megatron-gopd", "train", "x.yaml", "run.name=x-2"]


def test_what_was_overwritten_is_not_overwritten_again(started):
    found = started("megatron-gopd", "train", "x.yaml", "--overwrite", checkpoint={"resume": "overwrite"})
    assert found == ["megatron-gopd", "train", "x.yaml"]


def test_a_run_that_never_resumes_is_told_to(started):
    found = started("megatron-gopd", "train", "x.yaml", checkpoint={"resume": "never"})
    assert found[-1] == "checkpoint.resume=auto"


def test_what_no_verb_started_has_no_command(started):
    assert started("python", "my_program.py", "train") is None
