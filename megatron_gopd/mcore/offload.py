"""Tensors that wait in host memory while others need the device."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from megatron_gopd.mcore.fp8 import held_by


class Offloader:
    """Moves the storage of some tensors to the host and back; the tensors, and views of them, stay the same objects.

    Reading them while they are away fails. On a CPU the mechanism is the same, from one buffer to another.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], *, frozen: bool = False):
        """`tensors` is asked at every release: an optimizer has more after its first step. `frozen`: they never
        change, so what was copied to the host once stays true."""
        self._tensors, self._frozen = tensors, frozen
        self._hosts: dict[int, Tensor] = {}  # by storage: the same memory each time, for pinning it takes long
        self._away: list[tuple[torch.UntypedStorage, Tensor]] = []

    @property
    def is_away(self) -> bool:
        return bool(self._away)

    def release(self) -> int:
        """Copy to the host and free the storage; returns the bytes freed. Nothing happens if it is away already."""
        if self._away:
            return 0
        storages = self._storages()
        new = [storage for storage in storages if not self._fits(storage)]
        hosts = _host_memory([storage.nbytes() for storage in new], pinned=any(map(_is_on_gpu, new)))
        self._hosts |= {storage._cdata: host for storage, host in zip(new, hosts, strict=True)}
        for storage in new if self._frozen else storages:
            self._hosts[storage._cdata].copy_(_bytes(storage), non_blocking=True)
        if any(map(_is_on_gpu, storages)):
            torch.cuda.current_stream().synchronize()
        self._away = [(storage, self._hosts[storage._cdata]) for storage in storages]
        for storage in storages:
            storage.resize_(0)
        return sum(host.nbytes for _, host in self._away)

    def restore(self) -> None:
        """Allocate again and copy back, bit for bit; what is computed with them next waits for the copies."""
        for storage, host in self._away:
            storage.resize_(host.nbytes)
            _bytes(storage).copy_(host, non_blocking=True)
        self._away = []

    @contextlib.contextmanager
    def resident(self) -> Iterator[None]:
        """The tensors are there within the block, and away after it."""
        self.restore()
        try:
            yield
        finally:
            self.release()

    def _storages(self) -> list[torch.UntypedStorage]:
        """Of all tensors, each once."""
        parts = [part for tensor in self._tensors() for part in held_by(tensor) if part.numel()]
        return list({part.untyped_storage()._cdata: part.untyped_storage() for part in parts}.values())

    def _fits(self, storage: torch.UntypedStorage) -> bool:
        host = self._hosts.get(storage._cdata)
        return host is not None and host.nbytes == storage.nbytes()


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    """The whole storage as [bytes] uint8."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _is_on_gpu(storage: torch.UntypedStorage) -> bool:
    return storage.device.type == "cuda"


def _host_memory(sizes: list[int], *, pinned: bool) -> tuple[Tensor, ...]:
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
    """Memory that a GPU copies to and from by itself. Registered, as torch rounds its own up to a power of two; and
    not handed to forked processes, such as those that write checkpoints: the kernel would copy pinned pages."""

    def __new__(cls, size: int):
        made = super().__new__(cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        made.madvise(mmap.MADV_DONTFORK)
        made.address = torch.frombuffer(made, dtype=torch.uint8).data_ptr()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(made.address, size, 0))
        return made

    def __del__(self):
        with contextlib.suppress(AttributeError):  # of a process that is ending, where torch is gone
            torch.cuda.cudart().cudaHostUnregister(self.address)
