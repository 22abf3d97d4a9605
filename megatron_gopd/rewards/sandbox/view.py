"""What a sandboxed program sees of the file system: Python and its library, read-only; empty /tmp and /dev/shm."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

from megatron_gopd.rewards.sandbox import linux
from megatron_gopd.rewards.sandbox.imports import STANDARD_LIBRARY

PYTHON = os.path.realpath(sys._base_executable)  # not the virtual environment's: only its packages below are shown
PACKAGES = ("numpy", "numpy.libs")  # other packages may hold benchmarks, with their solutions
FOLDER, SCRATCH, SHARED = "/sandbox", "/tmp", "/dev/shm"
ROOT_BYTES = 16 << 20  # for folders and links, beside the files
_ROOT = "/sys"  # is everywhere, and holds no Python that the new root would hide
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache")
_LOCAL = "/usr/local"  # what a site has added; a conda, for one, with every package it ever unpacked
_DEVICES = ("null", "full", "random", "urandom")  # zero, once mapped, is memory that nobody counts
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}  # in /dev
_READ_ONLY = linux.ATTR_RDONLY | linux.ATTR_NOSUID | linux.ATTR_NODEV


def enter(files: dict[str, str], scratch_bytes: int, owner: int) -> str:
    """Build the view and make it the root of this process, which has a mount namespace of its own.

    files: name -> text, below /sandbox. The process needs the capability to mount. Returns the folder with PACKAGES.
    Raises OSError.
    """
    linux.mount("none", "/", flags=linux.REC | linux.PRIVATE)
    size = ROOT_BYTES + sum(len(text) * 4 for text in files.values())
    linux.mount("tmpfs", _ROOT, "tmpfs", linux.NOSUID | linux.NODEV, f"size={size},mode=755")
    for source in _SYSTEM:
        _show(source)
    packages = _show_python()
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
    return packages


def empty_scratch(scratch_bytes: int, owner: int) -> None:
    """A new /tmp and /dev/shm in the place of what the last program left."""
    os.chdir("/")
    for folder in (SCRATCH, SHARED):
        linux.unmount(folder)
        linux.mount("tmpfs", folder, "tmpfs", linux.NOSUID | linux.NODEV, _size(scratch_bytes, owner))
    os.chdir(SCRATCH)


def file_bytes() -> int:
    """What /tmp and /dev/shm hold, files without a name too."""
    uses = [os.statvfs(folder) for folder in (SCRATCH, SHARED)]
    return sum((use.f_blocks - use.f_bfree) * use.f_frsize for use in uses)


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


@cache
def layout() -> tuple[list[str], list[str]]:
    """(folders that are shown of Python, folders that are covered). An installation such as conda's holds far more.

    Raises OSError: Python lies where programs have their own.
    """
    prefix = os.path.realpath(sys.base_prefix)
    if Path(prefix).is_relative_to(SCRATCH):
        raise OSError(f"Python is installed in {prefix}, and {SCRATCH} is what programs have as their own")
    # shared libraries lie there, side by side with folders of other programs
    libraries = [] if prefix == "/usr" else sorted({f"{prefix}/lib", f"{prefix}/{sys.platlibdir}"})
    others = [str(each) for folder in libraries for each in Path(folder).glob("*/") if not _leads_to_library(each)]
    return libraries, list(dict.fromkeys([_LOCAL, *_package_folders("/usr"), *others, *_package_folders(prefix)]))


def _show_python() -> str:
    """Python, its library and PACKAGES, and where those are."""
    libraries, covered = layout()
    covers = _cover([folder for folder in covered if folder.startswith("/usr/")])
    for source in (PYTHON, *libraries):
        _show(source)
    covers += _cover([folder for folder in covered if folder not in covers])
    found = packages()
    # conda's numpy finds its libraries from its own place
    in_place = any(folder.is_relative_to(cover) for folder in found for cover in covers)
    place = str(found[0].parent) if in_place else f"{FOLDER}/packages"
    for folder in found:
        _show(str(folder), at=f"{place}/{folder.name}")
    for cover in covers:
        linux.set_mount_attributes(f"{_ROOT}{cover}", _READ_ONLY, recursive=False)
    return place


def _package_folders(prefix: str) -> list[str]:
    pattern = "lib*/python*/*-packages"  # site-packages, dist-packages
    return [str(folder) for folder in Path(prefix).glob(pattern) if folder.is_dir()]


def _leads_to_library(folder: Path) -> bool:
    return folder.is_symlink() or Path(STANDARD_LIBRARY).is_relative_to(folder)


def _cover(folders: list[str]) -> list[str]:
    """Mount an empty folder on each that is shown, and return those; they stay writable for now."""
    shown = []
    for folder in folders:
        if os.path.isdir(f"{_ROOT}{folder}"):  # and not below one that is covered
            linux.mount("tmpfs", f"{_ROOT}{folder}", "tmpfs", linux.NOSUID | linux.NODEV, "size=64k,mode=755")
            shown.append(folder)
    return shown


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


def _size(limit: int, owner: int) -> str:
    return f"size={limit},nr_inodes=4096,mode=700,uid={owner}"


def _mount_new(kind: str, at: str, flags: int, options: str | None = None) -> None:
    os.makedirs(f"{_ROOT}{at}")
    linux.mount(kind, f"{_ROOT}{at}", kind, flags, options)
