"""Seconds and memory of a call, on a GPU or a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

LONG_S = 2.0  # a call that takes longer is not repeated


def wait() -> None:
    """For all that was computed; copies beside it go on, as they do in a run."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


def once(run: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The median, after a call that compiles and one that warms up."""
    run()
    first = once(run)
    return first if first > LONG_S else statistics.median(once(run) for _ in range(repeats))


def extra_mb(run: Callable[[], object]) -> float | None:
    """The peak of one call over what is held already; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    wait()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
