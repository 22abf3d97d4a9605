"""Where an attempt runs, and with what."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import megatron_gopd
from megatron_gopd.runs.again import typed_command
from megatron_gopd.runs.atomic import write_text
from megatron_gopd.srun import this_node

MANIFEST = "manifest.json"  # in the attempt's logs
PACKAGES = ("torch", "megatron-core", "transformers", "tokenizers", "numpy", "transformer-engine", "triton", "sglang")


def versions() -> dict[str, str]:
    """Of Python, this package, and those that it computes with and that are installed."""
    found = {"python": platform.python_version(), "megatron-gopd": megatron_gopd.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def about_machine() -> dict:
    """Host, versions, process, its place among the ranks, and the command that started it. JSON values."""
    return {
        "host": this_node(),
        "versions": versions(),
        "pid": os.getpid(),
        "ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "command": typed_command(),
    }


def write_machine(logs: Path) -> None:
    """Write them to the folder of the attempt, with the time."""
    text = json.dumps(about_machine() | {"begun": time.strftime("%Y-%m-%dT%H:%M:%S%z")}, indent=1)
    write_text(logs / MANIFEST, text + "\n")
