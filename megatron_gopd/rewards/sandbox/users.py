"""Whom programs run as."""

from __future__ import annotations

import os
from pathlib import Path

OWN_UID = 1_000  # in a user namespace, what this process's user is called there
FIRST = (
    2_100_000_000  # as root: one a worker, for RLIMIT_NPROC counts by user; systemd, shadow and SSSD give none of these
)
FEW = range(65_520, 65_534)  # where a container has no others; systemd leaves them alone


def uid_of_programs() -> int | None:
    """In a child of a worker: as root, a user of the worker's own; None: this process's user."""
    return None if os.getuid() else uid_for(os.getppid())


def uid_for(worker: int) -> int:
    """Not only of programs: in namespaces nobody else meets them, and what is ended are descendants, not a user's."""
    return FIRST + worker if _exists(FIRST + worker) else FEW[worker % len(FEW)]


def _exists(uid: int) -> bool:
    try:
        ranges = [map(int, line.split()) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except FileNotFoundError:  # not on Linux
        return False
    return any(first <= uid < first + count for first, _, count in ranges)
