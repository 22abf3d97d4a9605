"""The filter of system calls: made for both architectures, and what it lets through."""

from __future__ import annotations

import errno
import platform
import struct

import pytest

from megatron_gopd.rewards.sandbox import seccomp, syscalls

ALLOWED, FORBIDDEN, MISSING, KILLED = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    seccomp.program.cache_clear()
    yield request.param
    seccomp.program.cache_clear()


def verdict(number: int, *args: int, architecture: int | None = None) -> int:
    """What the filter says, as the kernel's interpreter would: struct seccomp_data in, an action out."""
    architecture = architecture or seccomp._ARCHITECTURE[platform.machine()]
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    steps, at, word = list(struct.iter_unpack("=HBBI", seccomp.program())), 0, 0
    while True:
        code, true, false, constant = steps[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            (word,) = struct.unpack_from("=I", data, constant)
        elif code == 0x54:
            word &= constant
        else:
            at += true if (word == constant if code == 0x15 else word & constant) else false


def test_what_the_table_has_is_allowed_and_all_else_is_not_implemented(machine):
    numbers = syscalls.numbers()
    plain = [number for name, number in numbers.items() if name not in seccomp._REFUSED]
    assert {verdict(number, 2**64 - 1, 2**64 - 1) for number in plain} == {ALLOWED}
    others = set(range(600)) - set(numbers.values())
    assert {verdict(number) for number in others} == {MISSING}


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("clone", [(0x3D0F00,), (17,), (0x4111,)], [(0x10000000,), (0x20011,), (0x10100,), (0x1 << 32 | 0x10000000,)]),
        ("mmap", [(0, 9, 3, 0x22), (0, 9, 3, 0x01, 5)], [(0, 9, 3, 0x21), (0, 9, 3, 0x23), (0, 9, 3, 0x40022)]),
        ("prlimit64", [(0, 7)], [(1, 7), (2, 7), (1 << 32 | 1, 7)]),
        ("socketpair", [(1, 1), (1, 0x80801)], [(1, 2), (2, 1), (40, 1), (1, 5)]),
        ("setpriority", [(0, 0, 5)], [(0, 1, 5), (2, 0, 5), (1, 0, 5)]),
        ("sched_setaffinity", [(0,)], [(1,)]),
        ("close_range", [(3, 9, 0), (3, 9, 4)], [(3, 9, 2), (3, 9, 6)]),
        ("fcntl", [(3, 1030), (3, 6), (3, 4)], [(3, 1031), (3, 37), (3, 1024), (3, 1026)]),
    ],
)
def test_arguments_that_reach_others_or_hold_uncounted_memory_are_refused(machine, name, allowed, refused):
    number = syscalls.numbers()[name]
    assert {verdict(number, *args) for args in allowed} == {ALLOWED}
    assert {verdict(number, *args) for args in refused} == {FORBIDDEN}


def test_calls_of_another_architecture_end_the_program(machine):
    assert verdict(syscalls.numbers()["read"], architecture=0x40000003) == KILLED


def test_a_machine_whose_calls_are_not_known_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    with pytest.raises(OSError, match="the system calls of ppc64le are not known"):
        syscalls.numbers()
