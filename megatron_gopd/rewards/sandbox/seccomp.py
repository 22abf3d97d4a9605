"""The filter of a program's system calls: seccomp, which any user may put on himself and his children, for good."""

from __future__ import annotations

import errno
import platform
import struct
from functools import cache

from megatron_gopd.rewards.sandbox.syscalls import numbers

_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_LOAD, _AND, _IF_EQUAL, _IF_ANY, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # linux/seccomp.h
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_ALL = 0xFFFFFFFF
_NAMESPACES = 0x7E020000  # linux/sched.h
_LOCKS, _LEASE, _NOTIFY, _PIPE_SIZE = (37, 38), 1024, 1026, 1031  # linux/fcntl.h; locks: those of no process

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant

# call -> (argument, mask, refused where what the mask leaves "is" or "is not" the value, or has "any" bit of it)
_REFUSED = {
    "clone": ((0, _ALL, "any", _NAMESPACES), (0, 0x10400, "is", 0x10000)),  # a thread has its process's descriptors
    "close_range": ((2, 2, "any", 2),),  # CLOSE_RANGE_UNSHARE: descriptors of the thread's own
    "mmap": ((3, 0x21, "is", 0x21), (3, _ALL, "any", 0x40000)),  # shared memory without a file, huge pages
    "fcntl": tuple((1, _ALL, "is", command) for command in (*_LOCKS, _LEASE, _NOTIFY, _PIPE_SIZE)),
    "prlimit64": ((0, _ALL, "is not", 0),),  # 0: this process
    "sched_setaffinity": ((0, _ALL, "is not", 0),),
    "setpriority": ((0, _ALL, "is not", 0), (1, _ALL, "is not", 0)),
    "socketpair": ((0, _ALL, "is not", 1), (1, 0xF, "is not", 1)),  # AF_UNIX, SOCK_STREAM
}


@cache
def program() -> bytes:
    """An array of struct sock_filter. Raises OSError on a machine whose system calls are not known."""
    known = numbers()
    steps: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_IF_EQUAL, 1, 0, _ARCHITECTURE[platform.machine()]),
        (_RETURN, 0, 0, _KILL),  # calls of another architecture have other numbers
        (_LOAD, 0, 0, _NUMBER),
    ]
    for name, number in known.items():
        body = [step for refused in _REFUSED.get(name, ()) for step in _refusal(*refused)]
        body.append((_RETURN, 0, 0, _ALLOW))
        steps += [(_IF_EQUAL, 0, len(body), number), *body]
    steps.append((_RETURN, 0, 0, _ERRNO | errno.ENOSYS))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _refusal(argument: int, mask: int, test: str, value: int) -> list[Instruction]:
    """EPERM for such an argument; every one that is filtered has its meaning in its lower 32 bits."""
    compare = (_IF_ANY if test == "any" else _IF_EQUAL, *((1, 0) if test == "is not" else (0, 1)), value)
    low = _ARGUMENTS + 8 * argument  # both architectures are little-endian
    return [(_LOAD, 0, 0, low), (_AND, 0, 0, mask), compare, (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
