"""Descendants of a process, where no namespace holds them together."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import psutil


def descendants(pid: int) -> list[int]:
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def kill_descendants(pid: int) -> None:
    """Those there are. First all are stopped, lest they fork faster than they are found."""
    stopped: set[int] = set()
    while new := set(descendants(pid)) - stopped:
        for each in new:
            send(each, signal.SIGSTOP)
        stopped |= new
    for each in stopped:
        send(each, signal.SIGKILL)


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
