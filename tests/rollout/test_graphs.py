"""Steps that are captured: each is run once as it is, and no capture computes."""

from __future__ import annotations

import contextlib
from unittest import mock

import torch

from megatron_gopd.rollout.graphs import Graphs

GPU = torch.device("cuda", 0)


class Recorded:
    """A graph of CUDA: what was called within its capture, called again."""

    capturing: list | None = None

    def pool(self):
        return "pool"

    def replay(self):
        for call in self.calls:
            call()


@contextlib.contextmanager
def capture(graph, pool, capture_error_mode):
    graph.asked_pool = pool
    Recorded.capturing = graph.calls = []
    yield
    Recorded.capturing = None


def launch(done: list, what: str) -> None:
    """A kernel: recorded under a capture, else run."""
    if Recorded.capturing is None:
        done.append(what)
    else:
        Recorded.capturing.append(lambda: done.append(what))


def run_all(device, keys: str) -> tuple[list, list]:
    """(kernels in the order in which they ran, keys of the calls of a step in Python)."""
    done, called = [], []
    with mock.patch.object(torch.cuda, "CUDAGraph", Recorded), mock.patch.object(torch.cuda, "graph", capture):
        graphs = Graphs(device)
        for key in keys:
            graphs.run(key, lambda key=key: (called.append(key), launch(done, key)))
    return done, called


def test_a_gpu_runs_every_step_once_and_calls_each_key_twice():
    done, called = run_all(GPU, "aabab")
    assert done == list("aabab")
    assert called == list("aabb")


def test_a_cpu_calls_every_step():
    done, called = run_all(torch.device("cpu"), "aabab")
    assert done == called == list("aabab")


def test_all_captures_share_one_pool():
    with mock.patch.object(torch.cuda, "CUDAGraph", Recorded), mock.patch.object(torch.cuda, "graph", capture):
        graphs = Graphs(GPU)
        for key in "ab":
            graphs.run(key, lambda: None)
    assert [graph.asked_pool for graph in graphs._graphs.values()] == [None, "pool"]
