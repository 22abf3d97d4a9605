"""Control groups of version 1 and 2: where they are, and how many cores they leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_gopd import cgroups, cores


def system(at: Path, version: int, groups: dict[str, str], own: str) -> Path:
    """/proc/self of a process in the group `own`; groups: path -> its quota, as `cpu.max` has it."""
    mount, proc = at / "mount", at / "proc"
    proc.mkdir()
    for path, quota in groups.items():
        folder = mount / path
        folder.mkdir(parents=True)
        if version == 2:
            (folder / "cgroup.controllers").write_text("cpu memory")
            (folder / "cpu.max").write_text(quota)
        else:
            (folder / "cpu.cfs_quota_us").write_text(quota.split()[0].replace("max", "-1"))
            (folder / "cpu.cfs_period_us").write_text(quota.split()[1])
    kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,cpu,cpuacct")
    (proc / "mountinfo").write_text(f"9 1 0:9 / {mount} rw,relatime shared:1 - {kind} none {options}\n")
    (proc / "cgroup").write_text(f"0::/{own}\n" if version == 2 else f"3:cpu,cpuacct:/{own}\n0::/\n")
    return proc


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("groups", "cores_left"),
    [
        ({"": "max 100000", "job": "max 100000"}, None),
        ({"": "max 100000", "job": "150000 100000"}, 1.5),
        ({"": "max 100000", "job": "400000 100000", "job/step": "max 100000"}, 4),
        ({"": "max 100000", "job": "50000 100000", "job/step": "400000 100000"}, 0.5),
    ],
)
def test_the_narrowest_group_says_how_many_cores(tmp_path, version, groups, cores_left):
    assert cgroups.cores_of_quota(system(tmp_path, version, groups, list(groups)[-1])) == cores_left


@pytest.mark.parametrize(("quota", "processes"), [(None, 8), (1.5, 2), (0.5, 1), (64.0, 8)])
def test_as_many_processes_as_the_cores_and_the_quota_can_keep_busy(monkeypatch, quota, processes):
    monkeypatch.setattr(cores, "cores_of_quota", lambda: quota)
    assert cores.processes_for(range(8)) == processes
