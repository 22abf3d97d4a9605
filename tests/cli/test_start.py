"""What the command line costs before it does anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run_verb import ROOT, write_config

CODE = """
import json, sys, time
import megatron_gopd.cli as cli
seconds, codes = time.process_time(), {}
for name, arguments in json.loads(sys.argv[1]).items():
    try:
        cli.app(arguments)
    except SystemExit as end:
        codes[name] = end.code
print(json.dumps({"seconds": seconds, "codes": codes, "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> dict:
    """A new interpreter that has shown its help, a configuration, a misspelt key, and reported on a run not begun."""
    models = {"student": "student", "teacher": "teacher", "other": "other"}
    config = str(write_config(tmp_path_factory.mktemp("start"), models, "train.jsonl"))
    runs = tmp_path_factory.mktemp("study") / "runs"
    runs.mkdir()
    (runs / "config.yaml").write_text(Path(config).read_text())
    calls = {
        "help": ["--help"],
        "dry run": ["train", config, "--dry-run"],
        "misspelt": ["train", config, "run.stpes=3"],
        "report": ["report", str(runs), "--output", str(runs.parent / "report")],
    }
    command = [sys.executable, "-c", CODE, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def test_help_a_dry_run_a_misspelt_key_and_a_report_import_no_torch(started):
    assert started["codes"] == {"help": 0, "dry run": 0, "misspelt": 2, "report": 0}
    assert not started["torch"]


def test_the_command_line_is_there_within_a_second(started):
    assert started["seconds"] < 1  # of processor time, since the interpreter began
