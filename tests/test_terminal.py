"""What others wrote does nothing to the terminal that shows it, wherever it is printed."""

from __future__ import annotations

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gopd.terminal import say, shown

PACKAGE = Path(__file__).parents[1] / "megatron_gopd"
CLEAR = "\x1b[2J\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "as_shown"),
    [
        ("plain, ümlaut, 数学, 🙂, \ttab\nline", "plain, ümlaut, 数学, 🙂, \ttab\nline"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31mred", "\\x9b31mred"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("back\x08\x7f", "back\\x08\\x7f"),
        ("\u202eright to left", "\\u202eright to left"),
        ("\u2028", "\\u2028"),
        ("half \ud83d", "half \\ud83d"),
        ("\x00", "\\x00"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, as_shown):
    assert shown(text) == as_shown


def test_nothing_is_printed_past_it():
    """But by the programs of rewards/, which run elsewhere and print for their own parents."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name != "terminal.py" and "rewards" not in path.parts:
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            found += [f"{path}:{call.lineno}" for call in calls if getattr(call.func, "id", "") == "print"]
    assert not found


def test_text_is_said_with_its_escapes_shown(capsys):
    say("a", CLEAR, sep="|")
    assert capsys.readouterr().out == "a|\\x1b[2J\\x1b]0;owned\\x07\n"


def test_tables_samples_and_logs_show_them(capsys, tmp_path):
    from megatron_gopd.evaluation.probe import Measurement
    from megatron_gopd.evaluation.report import print_comparison
    from megatron_gopd.runs import Log, print_table

    print_table(CLEAR, [CLEAR], [[CLEAR]])
    fields = dict.fromkeys(Measurement.__dataclass_fields__, [])
    measured = Measurement(**fields | {"greedy": [{"prompt": CLEAR, "answer": CLEAR}]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_gopd.evaluation.report.compare", lambda *_: [])
        print_comparison(measured, measured)
    with Log(0) as log:
        file = log.to(tmp_path)
        logging.getLogger("megatron_gopd.servers").warning("it said %s", CLEAR)
    told = capsys.readouterr()
    for text, times in ((told.out, 3 + 3), (told.err, 1), (file.read_text(), 1)):
        assert "\x1b" not in text and "\x07" not in text
        assert text.count("\\x1b[2J") == times


def test_errors_show_them(tmp_path):
    (tmp_path / "run.yaml").write_text(
        f'run: {{name: "a", steps: 1, "{CLEAR.encode("unicode_escape").decode()}": 2}}\n'
    )
    words = [sys.executable, "-m", "megatron_gopd", "train", str(tmp_path / "run.yaml"), "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "\\x1b[2J" in done.stderr and "\x1b" not in done.stderr


def test_the_status_of_somebody_s_run_shows_them(tmp_path):
    attempt = tmp_path / "slurm" / "job-7" / "attempt-0"
    attempt.mkdir(parents=True)
    (attempt / "outcome.json").write_text(json.dumps({"kind": "failed", "message": CLEAR, "exit_code": 1}))
    words = [sys.executable, "-m", "megatron_gopd", "status", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0
    assert "\\x1b[2J" in done.stdout and "\x1b" not in done.stdout


def test_tracebacks_show_them():
    program = "from megatron_gopd.terminal import show_errors; show_errors(); raise ValueError('\\x1b[2J')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: \\x1b[2J\n")
