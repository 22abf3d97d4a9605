from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tool():
    """The script tools/NAME.py as a module."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run():
    """The script tools/NAME.py as a user runs it."""

    def call(name: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, ROOT / "tools" / f"{name}.py", *map(str, arguments)]
        env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return call
