from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.runs import log_to

LOGGER = logging.getLogger("megatron_gopd.training.distill")


def test_what_the_package_logs_goes_to_the_file_of_the_rank_with_the_time(tmp_path):
    with log_to(tmp_path / "attempt-1", 3) as file:
        LOGGER.info("loaded %d prompts", 7)
    assert file == tmp_path / "attempt-1" / "rank-3.log"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO \S+distill: loaded 7 prompts\n", file.read_text())


def test_the_traceback_that_ends_the_block_is_in_the_file_and_goes_on(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError), log_to(tmp_path, 0):
        1 / 0  # noqa: B018
    text = (tmp_path / "rank-0.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert "ZeroDivisionError: division by zero" in text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rank", "shown"), [(0, "careful\n"), (1, "")])
def test_warnings_are_shown_by_the_first_rank_alone(tmp_path, capsys, rank, shown):
    with log_to(tmp_path, rank):
        LOGGER.info("calm")
        LOGGER.warning("careful")
    assert capsys.readouterr().err == shown


def test_after_the_block_the_file_is_left_alone(tmp_path):
    with log_to(tmp_path / "one", 0) as one:
        pass
    with log_to(tmp_path / "two", 0):
        LOGGER.info("second")
    assert one.read_text() == ""


def test_a_node_that_cannot_write_its_log_is_named(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    with pytest.raises(UserError, match=r"node7 cannot write to /proc/none \(No such.*\); set run.folder to"):
        log_to(Path("/proc/none"), 3).__enter__()
