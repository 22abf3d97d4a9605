"""Steps that are launched once and replayed: on a GPU, a step of a small model is all launches."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Graphs:
    """Runs a step: on a CPU calls it; on a GPU calls it the first time, and replays what it launched from then on.

    A step must read and write the same tensors at every call, and never wait for the device.
    """

    def __init__(self, device: torch.device):
        self._captures = device.type == "cuda"
        self.clear()

    def clear(self) -> None:
        """Forget all that was captured, and its memory."""
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, step: Callable[[], None]) -> None:
        """The step that `key` names: equal keys, equal launches."""
        if key in self._graphs:
            self._graphs[key].replay()
            return
        step()  # counts as this one, and loads and tunes what a capture must not
        if self._captures:
            self._graphs[key] = self._captured(step)

    def _captured(self, step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """Nothing is computed. All graphs share memory for what a step makes and drops; nothing else outlives one."""
        pool = next((graph.pool() for graph in self._graphs.values()), None)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # other threads may allocate
            step()
        return graph
