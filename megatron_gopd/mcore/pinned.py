"""Host memory that a GPU copies to and from by itself."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor


def host_memory(sizes: list[int], *, pinned: bool) -> tuple[Tensor, ...]:
    """[bytes] uint8 of each size, parts of one piece."""
    if not sizes:
        return ()
    whole = (
        torch.frombuffer(_Pinned(sum(sizes)), dtype=torch.uint8)
        if pinned
        else torch.empty(sum(sizes), dtype=torch.uint8)
    )
    return whole.split(sizes)


class _Pinned(mmap.mmap):
    """Registered, as torch rounds its own up to a power of two; and not handed to forked processes, such as those that
    write checkpoints: the kernel would copy pinned pages."""

    def __new__(cls, size: int):
        made = super().__new__(cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        made.madvise(mmap.MADV_DONTFORK)
        made.address = torch.frombuffer(made, dtype=torch.uint8).data_ptr()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(made.address, size, 0))
        return made

    def __del__(self):
        with contextlib.suppress(AttributeError):  # of a process that is ending, where torch is gone
            torch.cuda.cudart().cudaHostUnregister(self.address)
