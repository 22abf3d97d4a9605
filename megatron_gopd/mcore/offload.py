"""Tensors that wait in host memory while others need the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class Offloader:
    """Moves the storage of some tensors to the host and back; the tensors, and views of them, stay the same objects.

    Reading them while they are away fails. On a CPU the mechanism is the same, from one buffer to another.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self._tensors = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel()}
        self._away: list[tuple[torch.UntypedStorage, torch.UntypedStorage]] = []

    @property
    def is_away(self) -> bool:
        return bool(self._away)

    def release(self) -> int:
        """Copy to the host and free the storage; returns the bytes freed. Nothing happens if it is away already."""
        if self._away:
            return 0
        for tensor in self._tensors.values():
            storage = tensor.untyped_storage()
            host = torch.UntypedStorage(storage.nbytes())
            if storage.device.type == "cuda":
                host = host.pin_memory()
            host.copy_(storage)
            storage.resize_(0)
            self._away.append((storage, host))
        return sum(host.nbytes() for _, host in self._away)

    def restore(self) -> None:
        """Allocate again and copy back, bit for bit."""
        for storage, host in self._away:
            storage.resize_(host.nbytes())
            storage.copy_(host)
        self._away.clear()

    @contextlib.contextmanager
    def resident(self) -> Iterator[None]:
        """The tensors are there within the block, and away after it."""
        self.restore()
        try:
            yield
        finally:
            self.release()
