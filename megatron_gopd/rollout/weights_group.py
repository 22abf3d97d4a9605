"""A process group of this rank and servers, beside the job's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"  # read when a group is made


def join(store: dist.TCPStore, backend: str, size: int, name: str, limit: timedelta) -> dist.ProcessGroup:
    """Rank 0 of it; made as SGLang makes its side (init_custom_process_group)."""
    keys = dist.PrefixStore(name, store)
    with _errors_left_alone():
        group, _ = c10d._new_process_group_helper(
            size, 0, [], dist.Backend(backend), keys, group_name=name, timeout=limit
        )
    c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    return group


@contextlib.contextmanager
def _errors_left_alone() -> Iterator[None]:
    """NCCL's watchdog of a group that is made within the block does not end this process for a peer that is gone: a
    server is started anew."""
    before = os.environ.get(ERROR_HANDLING)
    os.environ[ERROR_HANDLING] = "0"
    try:
        yield
    finally:
        del os.environ[ERROR_HANDLING]
        if before is not None:
            os.environ[ERROR_HANDLING] = before
