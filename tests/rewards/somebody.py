"""Programs graded by a user without privileges, as every user of SLURM is: in a process of that user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

UID = 4321
PYTHON = "/usr/bin/python3"  # which that user may read
needs_root = pytest.mark.skipif(os.getuid() != 0 or not Path(PYTHON).exists(), reason="needs root and a system Python")


def run_as(uid: int, *arguments: str, given: str = "") -> subprocess.CompletedProcess:
    """The system's Python with our packages."""
    path = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(pytest.__file__).parents[1]}"}
    somebody = {"user": uid, "group": uid, "extra_groups": [], "env": path, "cwd": "/"}
    return subprocess.run([PYTHON, *arguments], input=given, capture_output=True, text=True, check=False, **somebody)


def grades_by(uid: int, answers: list[str], tests: list[str], **sandbox) -> list[list]:
    """[score, problem] of each answer."""
    done = run_as(uid, __file__, json.dumps(sandbox), given=json.dumps([answers, tests]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def processes_of(uid: int, patience_s: float = 60.0) -> list[list[str]]:
    """Command lines of that user's processes that do not end by themselves, as multiprocessing's helper does."""
    end = time.monotonic() + patience_s
    while True:
        left = [each.info["cmdline"] for each in psutil.process_iter(["uids", "cmdline"]) if _is_of(each, uid)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)


def _is_of(process: psutil.Process, uid: int) -> bool:
    return process.info["uids"] is not None and process.info["uids"].real == uid


if __name__ == "__main__":
    from megatron_gopd.config.schema import Sandbox
    from megatron_gopd.rewards import GraderPool

    with GraderPool("code", sandbox=Sandbox(**json.loads(sys.argv[1]))) as pool:
        print(json.dumps([[grade.score, grade.problem] for grade in pool.grade(*json.load(sys.stdin))]))
