"""The text files of a run, whatever state they are in: what cannot be read is noted and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from megatron_gopd.runs import rows


def read_config(file: Path, notes: list[str]) -> dict[str, Any]:
    """The tree of a configuration; empty where it is none, which is noted."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(tree, dict):
            json.dumps(tree, default=str)  # an alias of itself has no end
            return tree
        notes.append("config.yaml is not a configuration; what it says is left out")
    except FileNotFoundError:
        notes.append("there is no config.yaml; what it would say is left out")
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read ({type(error).__name__}); what it says is left out")
    return {}


def read_metrics(file: Path, notes: list[str]) -> list[dict[str, float]]:
    """The rows in the order of steps; what is no row is noted."""
    try:
        if not file.exists():
            notes.append("there is no metrics.jsonl: no step is done yet")
        found, bad = rows.read_metrics(file)
    except OSError as error:
        notes.append(f"metrics.jsonl cannot be read ({error.strerror})")
        return []
    if bad:
        notes.append(f"{bad} line{'s' * (bad > 1)} of metrics.jsonl could not be read")
    return found
