"""What a sandboxed program sees of the file system: Python and its library, read-only; empty /tmp and /dev/shm."""

from __future__ import annotations

import importlib.util
import os
import site
import sys
from pathlib import Path

from megatron_gopd.rewards.sandbox import linux

PYTHON = os.path.realpath(sys._base_executable)  # not the virtual environment's: only its packages below are shown
PACKAGES = ("numpy", "numpy.libs")  # other packages may hold benchmarks, with their solutions
FOLDER, SCRATCH, SHARED = "/sandbox", "/tmp", "/dev/shm"
_ROOT = "/sys"  # is everywhere, and holds no Python that the new root would hide
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}  # in /dev
_READ_ONLY = linux.ATTR_RDONLY | linux.ATTR_NOSUID | linux.ATTR_NODEV


def enter(files: dict[str, str], scratch_bytes: int, owner: int) -> None:
    """Build the view and make it the root of this process, which has a mount namespace of its own.

    files: name -> text, below /sandbox. The process needs the capability to mount. Raises OSError.
    """
    linux.mount("none", "/", flags=linux.REC | linux.PRIVATE)
    linux.mount("tmpfs", _ROOT, "tmpfs", linux.NOSUID | linux.NODEV, "size=16m,mode=755")
    for source in (*_SYSTEM, os.path.realpath(sys.base_prefix), os.path.dirname(PYTHON)):
        _show(source)
    _hide_packages()
    for name in _DEVICES:
        _show(f"/dev/{name}", linux.ATTR_NOSUID)
    write(files, f"{_ROOT}{FOLDER}")
    _mount_new("proc", "/proc", linux.NOSUID | linux.NODEV | linux.NOEXEC)
    for name, target in _LINKS.items():
        os.symlink(target, f"{_ROOT}/dev/{name}")
    for folder in (SCRATCH, SHARED):
        _mount_new("tmpfs", folder, linux.NOSUID | linux.NODEV, _size(scratch_bytes, owner))
    linux.set_mount_attributes(_ROOT, _READ_ONLY, recursive=False)
    linux.pivot_root(_ROOT)
    os.chdir(SCRATCH)


def empty_scratch(scratch_bytes: int, owner: int) -> None:
    """A new /tmp and /dev/shm in the place of what the last program left."""
    os.chdir("/")
    for folder in (SCRATCH, SHARED):
        linux.unmount(folder)
        linux.mount("tmpfs", folder, "tmpfs", linux.NOSUID | linux.NODEV, _size(scratch_bytes, owner))
    os.chdir(SCRATCH)


def shared_bytes() -> int:
    """What /dev/shm holds."""
    use = os.statvfs(SHARED)
    return (use.f_blocks - use.f_bfree) * use.f_frsize


def write(files: dict[str, str], folder: str) -> None:
    for name, text in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogateescape")


def packages() -> list[Path]:
    """The folders of PACKAGES that this Python can import."""
    numpy = importlib.util.find_spec("numpy")
    beside = Path(numpy.origin).parent.parent if numpy else Path("/none")
    return [beside / name for name in PACKAGES if (beside / name).is_dir()]


def _show(source: str, attributes: int = _READ_ONLY, at: str | None = None) -> None:
    """Bind a file or folder of the old root into the new one, under its own path unless told where."""
    target = f"{_ROOT}{at or source}"
    if os.path.islink(source):  # /bin -> usr/bin
        os.symlink(os.readlink(source), target)
        return
    if not os.path.exists(source) or os.path.exists(target):  # a part of what is shown already
        return
    if os.path.isdir(source):
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        Path(target).touch()
    linux.mount(source, target, flags=linux.BIND | linux.REC)
    linux.set_mount_attributes(target, attributes)


def _hide_packages() -> None:
    for folder in (*site.getsitepackages([os.path.realpath(sys.base_prefix)]), "/usr/lib/python3/dist-packages"):
        if os.path.isdir(f"{_ROOT}{folder}"):
            linux.mount("tmpfs", f"{_ROOT}{folder}", "tmpfs", linux.NOSUID | linux.NODEV, "size=4k,mode=755")
            linux.set_mount_attributes(f"{_ROOT}{folder}", _READ_ONLY)
    for folder in packages():
        _show(str(folder), at=f"{FOLDER}/packages/{folder.name}")


def _size(limit: int, owner: int) -> str:
    return f"size={limit},nr_inodes=4096,mode=700,uid={owner}"


def _mount_new(kind: str, at: str, flags: int, options: str | None = None) -> None:
    os.makedirs(f"{_ROOT}{at}")
    linux.mount(kind, f"{_ROOT}{at}", kind, flags, options)
