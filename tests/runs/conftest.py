from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_gopd
from megatron_gopd.config import Config


@pytest.fixture
def make_config(tmp_path):
    """A small valid configuration of the run tmp_path/runs/first; sections given replace those here."""

    def make(**sections) -> Config:
        tree = {
            "run": {"name": "first", "steps": 12, "folder": str(tmp_path / "runs")},
            "student": {"model": "student"},
            "teachers": {"math": {"model": "teacher"}},
            "data": {"train": "prompts.jsonl", "batch_size": 2},
        }
        return Config.model_validate(tree | sections)

    return make


@pytest.fixture
def spawn():
    """Start Python on some lines of code, its stdout a pipe; what still runs at the end of the test is killed."""
    processes = []
    root = str(Path(megatron_gopd.__file__).parents[1])

    def start(code: str, *arguments: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
