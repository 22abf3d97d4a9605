"""What the command line costs before it does anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

VERBS = ("train", "score", "evaluate")
CODE = """
import json, sys, time
import megatron_gopd.cli as cli
seconds, shown = time.process_time(), {}
for name, arguments in json.loads(sys.argv[1]).items():
    try:
        cli.app(arguments)
    except SystemExit as end:
        shown[name] = end.code
print(json.dumps({"seconds": seconds, "codes": shown, "torch": "torch" in sys.modules}))
"""


@pytest.fixture
def started(run) -> dict:
    """A new interpreter that has shown its help, a configuration, and a misspelt key."""
    calls = {
        "help": ["--help"],
        "dry run": ["train", str(run.config), "--dry-run"],
        "misspelt": ["train", str(run.config), "run.stpes=3"],
    }
    command = [sys.executable, "-c", CODE, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_help_configurations_and_their_mistakes_need_no_torch_and_less_than_a_second(started):
    assert started["codes"] == {"help": 0, "dry run": 0, "misspelt": 2}
    assert not started["torch"]
    assert started["seconds"] < 1  # of processor time, since the interpreter began


def test_help_lists_the_verbs(call):
    shown = call("--help")
    assert shown.exit_code == 0
    assert all(f"  {verb} " in shown.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does(call, verb):
    shown = call(verb, "--help")
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) > 8
