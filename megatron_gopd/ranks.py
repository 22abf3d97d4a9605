"""The ranks of this job: one process alone, or those torchrun or srun started."""

from __future__ import annotations

import contextlib
import datetime
import os

import torch
import torch.distributed as dist


@contextlib.contextmanager
def ranks():
    """The default process group, for the time of a command. gloo on CPU, NCCL on GPU; nothing to set up alone."""
    timeout = datetime.timedelta(minutes=30)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
