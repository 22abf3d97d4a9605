"""How a run that lost its servers ends."""

from __future__ import annotations

import json
import subprocess
import sys

LOSES = """
from megatron_gopd.ranks import ranks
from megatron_gopd.servers.supervisor import LostServersError

with ranks():
    raise LostServersError("http://node3:1 gave no good answer for 120 s")
"""


def test_it_is_not_taken_for_a_mistake_that_no_requeue_would_help(tmp_path, monkeypatch):
    """Code 2 ends a batch job for good."""
    monkeypatch.setenv("MEGATRON_GOPD_OUTCOME", str(tmp_path / "outcome.json"))
    done = subprocess.run([sys.executable, "-c", LOSES], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("error: http://node3:1 gave no good answer")
    assert json.loads((tmp_path / "outcome.json").read_text())["exit_code"] == done.returncode == 1
