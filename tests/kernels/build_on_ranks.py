"""What the ranks of test_cpp_build do: all build the kernel at once, in an empty cache."""

from __future__ import annotations

import os
from pathlib import Path

import torch.distributed as dist


def build(cache: str, counted: str) -> dict:
    """The libraries in the cache, how often the compiler ran, and whether every rank got the operators.

    counted: a compiler that leaves a file for every run.
    """
    os.environ |= {"TORCH_EXTENSIONS_DIR": cache, "CXX": counted}
    from megatron_gopd.kernels.cpp_build import load_cpp

    loaded = [None] * dist.get_world_size()
    dist.barrier()
    dist.all_gather_object(loaded, load_cpp() is not None)
    runs = len(list(Path(counted).parent.glob("run.*")))
    return {"libraries": len(list(Path(cache).rglob("*.so"))), "runs": runs, "loaded": loaded}
