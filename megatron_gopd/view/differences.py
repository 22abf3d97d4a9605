"""What tells runs apart: their configurations, key by key."""

from __future__ import annotations

import json
from typing import Any

from megatron_gopd.view.run import Run


def flat(tree: dict[str, Any], above: str = "") -> dict[str, str | None]:
    """{dotted key: value as text}; None where it is null."""
    found: dict[str, str | None] = {}
    for name, value in tree.items():
        key = f"{above}{name}"
        if isinstance(value, dict) and value:
            found |= flat(value, f"{key}.")
        else:
            found[key] = None if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def differing(runs: list[Run]) -> list[str]:
    """The keys in which the configurations of several runs differ, run.name aside."""
    trees = [flat(run.config) for run in runs]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return [key for key in keys if key not in ("run.name", "run.folder") and len({tree.get(key) for tree in trees}) > 1]
