from __future__ import annotations

import os
import pty
import re
import sys

import pytest

from megatron_gopd.runs import StepLine, print_markdown, print_table
from megatron_gopd.runs.console import step_line

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
LINE = (
    "step 3/12 | loss 0.1234 | reverse_kl 0.110 | tokens 45.2 (finished 58%) | grad 1.23 | lr 1e-5 | "
    "rollout 4.1 score 2.2 train 4.0 sync 0.3 s | 57 tok/s"
)

TWO_STEPS = """
from megatron_gopd.runs import StepLine
with StepLine(2) as line:
    line.phase("rollout")
    line._bar.refresh()
    line.log(1, {"loss": 0.5})
    line.log(2, {"loss": 0.25})
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


def test_the_line_of_a_step():
    assert step_line(3, 12, METRICS) == LINE


def test_the_line_has_no_part_for_what_is_not_measured():
    assert step_line(1, 2, {"loss": 0.5, "timing/train_s": 2.0}) == "step 1/2 | loss 0.5000 | train 2.0 s"


def test_a_reward_is_in_the_line():
    assert "| reward 0.250 |" in step_line(3, 12, METRICS | {"reward": 0.25})


@pytest.mark.parametrize(("rate", "shown"), [(1e-5, "1e-5"), (2.5e-6, "2.5e-6"), (0.001, "0.001"), (1e-12, "1e-12")])
def test_the_learning_rate_is_short(rate, shown):
    assert step_line(1, 1, {"lr": rate}) == f"step 1/1 | lr {shown}"


def test_without_a_terminal_there_is_a_plain_line_and_nothing_else(capfd):
    with StepLine(12) as line:
        line.phase("rollout")
        line.log(3, METRICS)
    assert capfd.readouterr() == (LINE + "\n", "")


def test_on_a_terminal_a_bar_names_the_phase_and_counts_the_steps(in_terminal):
    shown, _ = in_terminal(TWO_STEPS, stdout_too=True)
    assert re.search(r"rollout.*0/2", shown)
    assert "step 1/2 | loss 0.5000" in shown
    assert "step 2/2 | loss 0.2500" in shown


def test_lines_for_a_file_go_to_the_file_while_the_bar_is_on_the_terminal(in_terminal):
    shown, out = in_terminal(TWO_STEPS, stdout_too=False)
    assert out == "step 1/2 | loss 0.5000\nstep 2/2 | loss 0.2500\n"
    assert "step 1/2" not in shown
    assert "rollout" in shown


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
