"""The system calls of a sandbox that Python has no name for."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from pathlib import Path

NEW_MOUNTS, NEW_UTS, NEW_IPC = 0x00020000, 0x04000000, 0x08000000  # linux/sched.h
NEW_USER, NEW_PIDS, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18  # linux/mount.h
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _CHILD_SUBREAPER, _NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38  # linux/prctl.h
_SECCOMP_MODE_FILTER = 2
_MOUNT_SETATTR = 442  # the same number on every architecture
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    result = _libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3])
    _check(result, f"mount {kind or source} on {target}")


def unmount(target: str) -> None:
    """Now for all who look it up; when its last user is done, for good."""
    _check(_libc.umount2(os.fsencode(target), _DETACH), f"umount {target}")


def set_mount_attributes(target: str, attributes: int, *, recursive: bool = True) -> None:
    """Add attributes to a mount; needs Linux 5.12."""
    wanted = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR), _AT_FDCWD, os.fsencode(target), flags, wanted, ctypes.c_size_t(32)
    )
    _check(result, f"mount_setattr {target}")


def pivot_root(folder: str) -> None:
    """Make the mount at `folder` the root; what was the root is gone."""
    os.chdir(folder)
    number = _PIVOT_ROOT.get(platform.machine())
    if number is None:
        raise OSError(f"pivot_root: its number on {platform.machine()} is not known")
    _check(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def die_with_parent() -> None:
    _prctl(_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Descendants whose parent has ended become children of this process."""
    _prctl(_CHILD_SUBREAPER, 1)


def hide_memory() -> None:
    """Processes of the same user cannot read this one's memory, files or environment, also after a fork."""
    _prctl(_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """setuid files and file capabilities mean nothing from here on."""
    _prctl(_NO_NEW_PRIVS, 1)


def filter_calls(program: bytes) -> None:
    """From here on the kernel asks this filter, an array of struct sock_filter, before every system call."""

    class Filter(ctypes.Structure):  # struct sock_fprog
        _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]

    fprog = Filter(len(program) // 8, program)
    _prctl(_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def prefer_to_kill() -> None:
    """Where memory runs out, this process and its children go first. Hidden ones of a user cannot say so."""
    with suppress(PermissionError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def drop_bounding_set() -> None:
    """The capabilities that a program it becomes could get."""
    with suppress(OSError):  # EINVAL after the last one, EPERM for a user who has none
        for number in range(64):
            _prctl(_CAPBSET_DROP, number)


def drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def _prctl(option: int, *values: int) -> None:
    _check(_libc.prctl(option, *(ctypes.c_ulong(each) for each in (*values, 0, 0, 0, 0)[:4])), "prctl")


def _check(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
