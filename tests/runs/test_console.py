from __future__ import annotations

import os
import pty
import re
import sys
import time

import pytest

from megatron_gopd.runs import StepLine, console, print_markdown, print_table, progress

METRICS = {
    "loss": 0.12341,
    "reverse_kl": 0.11,
    "reverse_kl/math": 0.2,
    "response_tokens_mean": 45.2,
    "truncated_fraction": 0.42,
    "grad_norm": 1.234,
    "lr": 1e-5,
    "timing/rollout_s": 4.1,
    "timing/score_s": 2.2,
    "timing/train_s": 4.0,
    "timing/sync_s": 0.3,
    "timing/step_s": 10.6,
    "tokens_per_s": 57.3,
}
LINE = "step 3/12 | loss 0.1234 | kl 0.110 | len 45.2 (42% cut) | grad 1.23 | 10.6 s, 57.3 tok/s | eta 1m35s"

TWO_STEPS = """
from megatron_gopd.runs import StepLine, progress
with StepLine(2) as line:
    progress.enter("rollout")
    progress.sampling(60).add(12, 3412)
    line._bar.refresh()
    line.log(1, {"loss": 0.5, "timing/step_s": 90.0})
    line._bar.refresh()
    line.log(2, {"loss": 0.25, "timing/step_s": 90.0})
"""


@pytest.fixture
def in_terminal(tmp_path):
    """Run code with stderr, and stdout if wanted, on a pseudo-terminal: (what the terminal got, what stdout got)."""

    def run(code: str, stdout_too: bool) -> tuple[str, str]:
        out = tmp_path / "stdout"
        pid, terminal = pty.fork()
        if pid == 0:
            if not stdout_too:
                os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
            os.environ |= {"TERM": "xterm", "COLUMNS": "120"}
            os.execv(sys.executable, [sys.executable, "-c", code])
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:  # Linux says so at the end of a pseudo-terminal
            pass
        assert os.waitpid(pid, 0)[1] == 0, shown.decode()
        return shown.decode(), out.read_text() if out.exists() else ""

    return run


def test_without_a_terminal_there_is_a_plain_line_and_nothing_else(capfd):
    with StepLine(12) as line:
        progress.enter("rollout")
        line.log(3, METRICS)
    assert capfd.readouterr() == (LINE + "\n", "")


def test_on_a_terminal_a_bar_names_phase_responses_steps_and_time_left(in_terminal):
    shown, _ = in_terminal(TWO_STEPS, stdout_too=True)
    assert re.search(r"rollout 12/60 responses, 3,412 tokens.*0/2", shown)
    assert re.search(r"1/2.*eta 1m30s", shown)
    assert "step 1/2 | loss 0.5000 | 90.0 s | eta 1m30s" in shown
    assert "step 2/2 | loss 0.2500 | 90.0 s" in shown


def test_the_cursor_stays_on_a_terminal(in_terminal):
    """A run that is ended at once cannot bring it back."""
    shown, _ = in_terminal(
        "from megatron_gopd.runs import StepLine\nimport os\nStepLine(2)\nos._exit(0)", stdout_too=True
    )
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_lines_for_a_file_go_to_the_file_while_the_bar_is_on_the_terminal(in_terminal):
    shown, out = in_terminal(TWO_STEPS, stdout_too=False)
    assert out == "step 1/2 | loss 0.5000 | 90.0 s | eta 1m30s\nstep 2/2 | loss 0.2500 | 90.0 s\n"
    assert "step 1/2" not in shown
    assert "rollout" in shown


def test_a_table_beside_the_bar_stands_above_it_and_in_the_log(in_terminal, tmp_path):
    source = f"""
from pathlib import Path
from megatron_gopd.runs import Log, StepLine, print_table
with StepLine(2) as line, Log(0) as log:
    log.to(Path({str(tmp_path)!r}))
    line._bar.refresh()
    print_table("Scores", ["model", "kl"], [["a", 0.5]])
"""
    shown, _ = in_terminal(source, stdout_too=True)
    logged = (tmp_path / "rank-0.log").read_text()
    assert [word for word in ("Scores", "model", "0.5") if word not in logged] == []
    assert re.search(r"(^|\n|\x1b\[2K)Scores", shown)  # on a line of its own


def test_an_evaluation_before_the_first_step_has_no_line(capfd):
    with StepLine(12) as line:
        line.log(0, {"eval/math": 0.5})
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_a_long_silence_is_broken(capfd, monkeypatch):
    monkeypatch.setattr(console, "SILENCE_S", 0.5)
    with StepLine(12):
        progress.enter("rollout")
        progress.sampling(60).add(12, 3412)
        time.sleep(2.5)
    assert capfd.readouterr().out.splitlines()[0] == "step 1/12: rollout 12/60 responses, 3,412 tokens"


def test_a_table_is_plain_text_as_wide_as_it_needs(capsys):
    print_table("Scores", ["model", "kl"], [["[bold]" + "x" * 200, 0.123456], ["b", 2]])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["Scores"]
    assert lines[1] == ["model", "kl"]
    assert lines[-2:] == [["[bold]" + "x" * 200, "0.1235"], ["b", "2"]]


def test_a_tables_numbers_stand_to_the_right(capsys):
    print_table("t", ["name", "steps"], [["a", 1], ["b", 1000]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rstrip().endswith(end) for line, end in zip(lines[-3:-1], ("    1", " 1000"), strict=True)] == [
        True
    ] * 2


MARKDOWN = "one on two\n\n| role | s |\n| --- | --- |\n| a role of many words | 1.5 |\n| b | 12.0 |"


def test_markdown_for_a_file_is_left_as_it_is(capsys):
    print_markdown(MARKDOWN)
    assert capsys.readouterr().out == MARKDOWN + "\n"


def test_a_table_of_markdown_is_a_table_on_a_terminal(in_terminal):
    source = f"from megatron_gopd.runs import print_markdown\nprint_markdown({MARKDOWN!r})"
    shown, _ = in_terminal(source, stdout_too=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "|" not in plain
    assert [line.split() for line in plain.splitlines()[-3:] if line.strip()] == [
        ["a", "role", "of", "many", "words", "1.5"],
        ["b", "12.0"],
    ]
