"""What the programs of a jail take of the machine: processor time, and memory of every kind."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

PIPE_PAGES = 16  # what one holds; F_SETPIPE_SZ is refused
LOCK_BYTES = 1 << 20  # far more than one takes: no program needs many, and the kernel counts them nowhere
LOCKS_READ = 1 << 20  # bytes of /proc/locks


def processor_seconds(pids: Iterable[int]) -> float:
    """Of these processes and of all children that have ended: theirs, and this process's own."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for pid in pids:
        with suppress(psutil.Error):
            total += sum(psutil.Process(pid).cpu_times()[:4])
    return total


def memory_bytes(pids: Iterable[int], more_than: int) -> int:
    """Pages, page tables, pipes, sockets and locks of these processes; what they share counts once.

    That takes a look at every page, so it is done where more than `more_than` bytes are taken without it.
    """
    pids = list(pids)
    objects = _object_bytes(pids)
    total = objects + sum(_kilobytes(pid, "status", "VmRSS VmSwap VmPTE") for pid in pids) * 1024
    if total <= more_than:
        return total
    return objects + sum(map(_own_kilobytes, pids)) * 1024


def _own_kilobytes(pid: int) -> int:
    """With its part of what it shares. The process that holds the tests shows no more than the whole."""
    own = _kilobytes(pid, "smaps_rollup", "Pss SwapPss")
    return own + _kilobytes(pid, "status", "VmPTE") if own else _kilobytes(pid, "status", "VmRSS VmSwap VmPTE")


def _kilobytes(pid: int, file: str, names: str) -> int:
    """The sum of these lines of a file in /proc."""
    wanted = {f"{name}:" for name in names.split()}
    for thread in _threads(pid):
        with suppress(OSError):  # it ended meanwhile
            lines = [line.split() for line in Path(thread, file).read_text().splitlines()]
            if found := [int(value[0]) for name, *value in lines if name in wanted]:
                return sum(found)
    return 0


def _threads(pid: int) -> Iterator[str]:
    """Each shows what all of them share, as long as it runs, and the first may end before the others."""
    yield f"/proc/{pid}"
    with suppress(OSError):
        yield from (each.path for each in os.scandir(f"/proc/{pid}/task"))


def _object_bytes(pids: Iterable[int]) -> int:
    """At most: of what lies in the kernel, where no process's size shows it."""
    links = {link for pid in pids for link in _descriptors(pid)}
    pipes = sum(link.startswith("pipe:") for link in links) * PIPE_PAGES * resource.getpagesize()
    sockets = sum(link.startswith("socket:") for link in links) * _socket_bytes()
    with suppress(OSError), open("/proc/locks", "rb") as locks:
        return pipes + sockets + locks.read(LOCKS_READ).count(b"\n") * LOCK_BYTES
    return pipes + sockets


def _descriptors(pid: int) -> list[str]:
    for thread in _threads(pid):
        with suppress(OSError):  # it ended meanwhile, or holds the tests and hides its own
            if links := [os.readlink(entry.path) for entry in os.scandir(f"{thread}/fd")]:
                return links
    return []


@cache
def _socket_bytes() -> int:
    """What waits in a socket is within its sender's buffer; setsockopt is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
