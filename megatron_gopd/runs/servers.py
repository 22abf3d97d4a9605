"""What the servers that a run starts have done, for whoever looks: a file for each model, beside their logs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_gopd.runs.atomic import write_text


@dataclass(frozen=True)
class ServerRow:
    """Of one attempt."""

    name: str
    node: str
    up: bool
    requests: int  # answered
    tokens_per_s: float | None  # sampled or scored, lately, while it had requests; None: it never had any
    restarts: int


def write_servers(logs: Path, pool: str, rows: Sequence[ServerRow]) -> None:
    """Raises OSError."""
    write_text(logs / f"servers-{pool}.json", json.dumps([asdict(row) for row in rows], indent=1))


def read_servers(run: Path) -> dict[str, list[ServerRow]]:
    """{node: its servers}, of the newest attempt; empty where it started none."""
    found: dict[str, list[ServerRow]] = {}
    for file in sorted((run / "logs" / "latest").glob("servers-*.json")):
        with contextlib.suppress(FileNotFoundError):
            for row in json.loads(file.read_text()):
                found.setdefault(row["node"], []).append(ServerRow(**row))
    return found
