"""Verbs as a user starts them, and configurations to start them with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def run_verb(*arguments: str | Path, timeout: float = 240) -> subprocess.CompletedProcess:
    """`python -m megatron_gopd ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "megatron_gopd", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def write_config(folder: Path, models: dict[str, Path], data: Path, **sections) -> Path:
    """A run of two teachers, told apart by opd_teacher; `sections` replace whole ones."""
    tree = {
        "run": {"name": "tiny", "steps": 2, "folder": str(folder / "runs")},
        "student": {"model": str(models["student"]), "dtype": "float32"},
        "teachers": {
            name: {"model": str(models[model]), "dtype": "float32"}
            for name, model in (("math", "teacher"), ("code", "other"))
        },
        "data": {"train": str(data), "batch_size": 2},
        "rollout": {"max_response_tokens": 6},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree | sections, sort_keys=False))
    return path
