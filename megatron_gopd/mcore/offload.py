"""Tensors that wait in host memory while others need the device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from megatron_gopd.mcore.copies import Copies, copies
from megatron_gopd.mcore.fp8 import held_by
from megatron_gopd.mcore.pinned import host_memory


class Offloader:
    """Moves the storage of some tensors to the host and back; the tensors, and views of them, stay the same objects.

    Reading them while they are away fails. On a CPU the mechanism is the same, from one buffer to another.
    """

    def __init__(self, tensors: Callable[[], Iterable[Tensor]], *, frozen: bool = False, copying: Copies | None = None):
        """`tensors` is asked at every release: an optimizer has more after its first step. `frozen`: they never
        change, so what was copied to the host once stays true. `copying`: default, this process's."""
        self._tensors, self._frozen, self._copies = tensors, frozen, copying or copies()
        self._hosts: dict[int, Tensor] = {}  # by storage: the same memory each time, for pinning it takes long
        self._away: list[tuple[torch.UntypedStorage, Tensor]] = []
        self._coming: list[object] = []  # copies back that were begun, and not waited for

    def release(self) -> int:
        """Copy to the host, beside what is computed next, and free the storage; returns the bytes that this frees, as
        soon as they are copied. Nothing happens if it is away already."""
        if self._away:
            return 0
        self._arrive()
        storages = self._storages()
        new = [storage for storage in storages if not self._fits(storage)]
        hosts = host_memory([storage.nbytes() for storage in new], pinned=any(map(_is_on_gpu, new)))
        self._hosts |= {storage._cdata: host for storage, host in zip(new, hosts, strict=True)}
        if leaving := [(self._hosts[one._cdata], _bytes(one)) for one in (new if self._frozen else storages)]:
            self._copies.begin(leaving)
            for _, source in leaving:
                self._copies.keep(source)
        self._away = [(storage, self._hosts[storage._cdata]) for storage in storages]
        for storage in storages:
            storage.resize_(0)
        return sum(host.nbytes for _, host in self._away)

    def fetch(self) -> None:
        """Allocate again and begin to copy back, beside what is computed next; nothing may be read before restore()."""
        pairs = []
        for storage, host in self._away:
            storage.resize_(host.nbytes)
            pairs.append((_bytes(storage), host))
        if pairs:
            self._coming.append(self._copies.begin(pairs))
        self._away = []

    def restore(self) -> None:
        """Back bit for bit; what is computed with them next waits for the copies."""
        self.fetch()
        self._arrive()

    @contextlib.contextmanager
    def resident(self) -> Iterator[None]:
        """The tensors are there within the block, and away after it."""
        self.restore()
        try:
            yield
        finally:
            self.release()

    def _arrive(self) -> None:
        for begun in self._coming:
            self._copies.wait(begun)
        self._coming = []

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
