"""How much of a GPU the LM head may take for what it keeps of a chunk."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_gopd.config.schema import Training
from megatron_gopd.kernels.workspace import kept_bytes

GIB = 2**30


def of_this_job(training: Training) -> int | None:
    """Bytes on each rank, as many on all of them: they must cut the same chunks. Collective over all ranks.

    None: `auto` without a GPU, where the kernel knows best.
    """
    if training.lm_head_gib != "auto":
        return int(training.lm_head_gib * GIB)
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    least = torch.tensor(free + unused)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return kept_bytes(least.item())
