"""The control groups of this process, of version 1 and 2: their folders, where they are mounted."""

from __future__ import annotations

from pathlib import Path


def folder(controller: str, proc: Path = Path("/proc/self")) -> tuple[Path, Path] | None:
    """(the folder of this process's group, the folder of the topmost one it sees); None without this controller."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except FileNotFoundError:  # not on Linux
        return None
    for fields in mounts:
        root, at, kind, options = fields[3], Path(fields[4]), *_kind(fields)
        for _, controllers, path in groups:
            listed = controller in controllers.split(",") and controller in options.split(",")
            if (kind == "cgroup" and listed) or (kind == "cgroup2" and not controllers and _has(at, controller)):
                below = path.removeprefix(root.rstrip("/")).strip("/")
                return at / below if (at / below).is_dir() else at, at
    return None


def cores_of_quota(proc: Path = Path("/proc/self")) -> float | None:
    """How many cores' time this process and its neighbours may take; None: no group says so."""
    found = folder("cpu", proc)
    if found is None:
        return None
    group, top = found
    quotas = [_quota(each) for each in (group, *group.parents) if each.is_relative_to(top)]
    return min((quota for quota in quotas if quota), default=None)


def _quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no such file: the topmost group of version 2; "max"
        return None


def _kind(fields: list[str]) -> tuple[str, str]:
    """(file system, options of its superblock) of a line of mountinfo."""
    after = fields.index("-")
    return fields[after + 1], fields[after + 3]


def _has(mount: Path, controller: str) -> bool:
    return controller in (mount / "cgroup.controllers").read_text().split()
