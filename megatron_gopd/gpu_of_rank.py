"""Which GPU a rank computes on, and what is refused: a rank without one, and two that share one unasked."""

from __future__ import annotations

import ctypes
import os

import torch
import torch.distributed as dist

from megatron_gopd.errors import UserError
from megatron_gopd.srun import this_node

SHARE = "NCCL_MULTI_RANK_GPU_ENABLE"
SHARES_FROM = (2, 30)  # NCCL's version; earlier ones do not know the variable


def take_gpu() -> None:
    """Compute on one of the visible GPUs: the LOCAL_RANK-th, or the only one, counted round where ranks are more."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def check_gpus() -> None:
    """Compare the GPUs that all ranks took. Collective, over gloo: NCCL may not work yet.

    By what names a GPU world-wide, as its number does not tell: torchrun shows the ranks of a node the same GPUs, srun
    may show each rank its own only, as number 0.

    Raises:
        UserError: a rank sees no GPU and others do; or two have the same one, which check_sharing refuses.
    """
    taken: list[tuple[str, str | None]] = [None] * dist.get_world_size()
    dist.all_gather_object(taken, (this_node(), _name()))
    first_on: dict[str, int] = {}
    for rank, (where, gpu) in enumerate(taken):
        if gpu is None and any(name for _, name in taken):
            raise UserError(
                f"rank {rank}, on {where}, sees no GPU, and others do: look at nvidia-smi and CUDA_VISIBLE_DEVICES "
                f"there, or hide the GPUs of all ranks (CUDA_VISIBLE_DEVICES=) to compute on CPUs"
            )
        if gpu and (first := first_on.setdefault(gpu, rank)) != rank:
            check_sharing(f"ranks {first} and {rank} have the same GPU of {where}")


def check_sharing(what: str) -> None:
    """Refuse `what`, ranks that share a GPU, unless it is asked for and NCCL can.

    Raises:
        UserError: begins with `what`.
    """
    if os.environ.get(SHARE) != "1":
        raise UserError(
            f"{what}, and NCCL asks for one each: start fewer ranks a node (torchrun --nproc-per-node, "
            f"srun --ntasks-per-node); to try many on one GPU, set {SHARE}=1"
        )
    if (found := nccl_version()) < SHARES_FROM:
        raise UserError(
            f"{what}, which {SHARE}=1 allows from NCCL 2.30 on, and this is NCCL {'.'.join(map(str, found))}: "
            f"start fewer ranks a node, or load a newer one in its place (LD_PRELOAD=PATH/libnccl.so.2)"
        )


def nccl_version() -> tuple[int, ...]:
    """Of the library that is loaded; torch.cuda.nccl.version() is the one that torch was compiled with."""
    number = ctypes.c_int()
    try:
        ctypes.CDLL("libnccl.so.2").ncclGetVersion(ctypes.byref(number))
    except OSError:  # linked into torch
        return torch.cuda.nccl.version()
    major, rest = divmod(number.value, 10000)
    return major, *divmod(rest, 100)


def _name() -> str | None:
    if not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
