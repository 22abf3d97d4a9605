"""The text files of a run, whatever state they are in: what cannot be read is noted and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


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
    """The rows in the order of steps, of a step that is there twice the later; what is no row is noted."""
    rows, bad = {}, 0
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.append("there is no metrics.jsonl: no step is done yet")
        return []
    except OSError as error:
        notes.append(f"metrics.jsonl cannot be read ({error.strerror})")
        return []
    for line in text.splitlines():
        row = _row(line)
        if row:
            rows[row["step"]] = row
        bad += row is None
    if bad:
        notes.append(f"{bad} line{'s' * (bad > 1)} of metrics.jsonl could not be read")
    return [rows[step] for step in sorted(rows)]


def _row(line: str) -> dict[str, float] | None:
    """The numbers of a row; None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return {name: value for name, value in row.items() if type(value) in (int, float) and abs(value) < 1e300}
