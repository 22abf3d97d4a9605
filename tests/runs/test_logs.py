from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.runs import Log

LOGGER = logging.getLogger("megatron_gopd.training.distill")


def lines_of(file: Path) -> list[str]:
    return [line.partition(": ")[2] for line in file.read_text().splitlines()]


def test_what_the_package_logs_goes_to_the_file_of_the_rank_with_the_time(tmp_path):
    with Log(3) as log:
        file = log.to(tmp_path / "attempt-1")
        LOGGER.info("loaded %d prompts", 7)
    assert file == tmp_path / "attempt-1" / "rank-3.log"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO \S+distill: loaded 7 prompts\n", file.read_text())


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_printed_is_in_the_file_and_shown(tmp_path, capsys, stream):
    with Log(0) as log:
        file = log.to(tmp_path)
        print("step 1/2 | ", end="", file=getattr(sys, stream))
        print("loss 0.5\n\x1b[1mbold\x1b[0m", file=getattr(sys, stream))
    assert lines_of(file) == ["step 1/2 | loss 0.5", "bold"]
    assert getattr(capsys.readouterr(), stream[3:]) == "step 1/2 | loss 0.5\n\x1b[1mbold\x1b[0m\n"


def test_what_came_before_there_was_a_file_is_in_it_in_order(tmp_path):
    with Log(0) as log:
        print("first")
        LOGGER.info("second")
        file = log.to(tmp_path)
        print("third")
    assert lines_of(file) == ["first", "second", "third"]


def test_a_pipe_that_nobody_reads_any_more_ends_nothing(tmp_path):
    """As where Ctrl-C ends `| tee` too."""
    code = (
        "import sys, pathlib\nfrom megatron_gopd.runs import Log\n"
        "with Log(0) as log:\n    log.to(pathlib.Path(sys.argv[1]))\n    sys.stdin.readline()\n"
        "    for _ in range(3):\n        print('saved', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    process.stdout.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    assert (process.wait(240), process.stderr.read()) == (0, b"")
    assert lines_of(tmp_path / "rank-0.log") == ["saved"] * 3
    process.stderr.close()


def test_the_traceback_that_ends_the_block_is_in_the_file_and_goes_on(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError), Log(0) as log:
        log.to(tmp_path)
        1 / 0  # noqa: B018
    text = (tmp_path / "rank-0.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert "ZeroDivisionError: division by zero" in text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rank", "shown"), [(0, "careful\n"), (1, "")])
def test_warnings_are_shown_by_the_first_rank_alone_and_logged_once(tmp_path, capsys, rank, shown):
    with Log(rank) as log:
        file = log.to(tmp_path)
        LOGGER.info("calm")
        LOGGER.warning("careful")
    assert capsys.readouterr().err == shown
    assert lines_of(file) == ["calm", "careful"]


def test_after_the_block_the_file_is_left_alone(tmp_path):
    with Log(0) as log:
        one = log.to(tmp_path / "one")
    with Log(0) as log:
        log.to(tmp_path / "two")
        print("second")
    assert one.read_text() == ""


def test_a_node_that_cannot_write_its_log_is_named(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    with (
        pytest.raises(UserError, match=r"node7 cannot write to /proc/none \(No such.*\); set run.folder to"),
        Log(3) as log,
    ):
        log.to(Path("/proc/none"))


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    with Log(0) as log:
        log.to(tmp_path)
        print("on it goes")
    assert capsys.readouterr() == ("on it goes\n", "")
