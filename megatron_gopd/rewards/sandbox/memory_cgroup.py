"""Where this user may make one, a control group for the memory of programs: there the kernel's own counts too."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from megatron_gopd import cgroups

PREFIX = "megatron-gopd-"
MARGIN = 64 << 20  # bytes for the referee; what it counts itself ends a program before this does


def join(limit: int) -> None:
    """Put this process and its children to come into the group of its parent, a worker; without one, do nothing."""
    parent = place()
    if parent is None:
        return
    group = parent / f"{PREFIX}{os.getppid()}"
    with suppress(OSError):  # another process may change what this one has seen
        group.mkdir(exist_ok=True)
        for name, value in _limits(group, limit + MARGIN).items():
            (group / name).write_text(str(value))
        (group / "cgroup.procs").write_text("0")


def kills() -> int:
    """Processes that the kernel has ended in the group of this process, a worker, for there was no memory left."""
    parent = place()
    for name in ("memory.events", "memory.oom_control"):  # of version 2, of version 1
        with suppress(OSError):
            lines = Path(parent or "/none", f"{PREFIX}{os.getpid()}", name).read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


@cache
def place() -> Path | None:
    """The group in which this process can make another one with a limit of its own."""
    found = cgroups.folder("memory")
    if found is None:
        return None
    group, top = found
    # of version 2, a group with processes has no groups with limits below it, but its neighbours may have
    candidates = [group, group.parent] if (group / "cgroup.controllers").exists() and group != top else [group]
    return next((each for each in candidates if _may_divide(each)), None)


def _may_divide(group: Path) -> bool:
    shares = group / "cgroup.subtree_control"
    divided = not shares.exists() or "memory" in shares.read_text().split()
    return divided and all(os.access(each, os.W_OK) for each in (group, group / "cgroup.procs"))


def _limits(group: Path, limit: int) -> dict[str, int]:
    """File -> value, in the order in which the kernel takes them."""
    wanted = {"memory.max": limit, "memory.swap.max": 0}  # of version 2
    if not (group / "memory.max").exists():
        both = "memory.memsw.limit_in_bytes"
        lower = (group / both).exists() and int((group / both).read_text()) < limit
        names = [both, "memory.limit_in_bytes"] if lower else ["memory.limit_in_bytes", both]
        wanted = dict.fromkeys(names, limit)
    return {name: value for name, value in wanted.items() if (group / name).exists()}


def remove_those_of_the_dead() -> None:
    """The groups of workers that are no more; they are made anew where one is needed after all."""
    parent = place()
    for group in parent.glob(f"{PREFIX}*") if parent else ():
        if not Path("/proc", group.name.removeprefix(PREFIX)).exists():
            with suppress(OSError):  # it is not empty: of a worker in another container
                group.rmdir()
