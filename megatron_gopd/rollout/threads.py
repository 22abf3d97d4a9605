"""Threads that a decoding step pays for: those of small products wait for each other longer than they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

PAYS = 2**21  # floating-point operations of a product in the mean, from which on threads share it


@contextmanager
def suited_threads(model: torch.nn.Module) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called with the rows of the steps to come; the threads are as before at the end.

    One or all that there are, by the size of the work alone: the same run has the same bits.
    """
    sizes = [module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    mean, whole = sum(sizes) / len(sizes), torch.get_num_threads()

    def suit(rows: int) -> None:
        wanted = whole if 2 * rows * mean >= PAYS else 1
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)

    try:
        yield suit
    finally:
        torch.set_num_threads(whole)
