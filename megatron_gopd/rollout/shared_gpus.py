"""Which ranks are on the GPUs of which servers, and which ways of updating weights that leaves."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.models import RolloutServers
from megatron_gopd.errors import UserError
from megatron_gopd.machine import visible_gpus
from megatron_gopd.ranks import on_first
from megatron_gopd.srun import this_node

Gpu = tuple[str, str]  # a node, and what CUDA_VISIBLE_DEVICES calls it there
OTHER_WAYS = "set rollout.sglang.sync to disk"


def check_sync(config: Config) -> None:
    """Whether rollout.sglang.sync can reach the servers where they are. Collective; before any of them is started.

    Raises:
        UserError: it cannot. NCCL has no two members on one GPU; CUDA IPC hands over what lies on the same one.
    """
    settings = config.rollout.sglang
    if config.rollout.engine != "sglang" or settings.sync == "disk" or not torch.cuda.is_available():
        return
    if settings.urls:  # where they are, nobody here knows; NCCL tells when there cannot be a group with them
        if settings.sync == "tensor":
            raise UserError(
                f"rollout.sglang.sync: tensor is for servers on the GPUs of the ranks, and those at "
                f"rollout.sglang.urls need not be: {OTHER_WAYS} or distributed"
            )
        _connect_as_sglang_does()
        return
    servers, homes = gpus_of_servers(settings), homes_of(settings)
    if settings.sync == "tensor":
        _refuse_away(servers, homes)
    else:
        _refuse_shared(servers, homes)
        _connect_as_sglang_does()


def _connect_as_sglang_does() -> None:
    """SGLang turns this off, and NCCL need not connect those that have it with those that have not (it is read when the
    first communicator is made; sglang/srt/entrypoints/engine.py)."""
    os.environ.setdefault("NCCL_CUMEM_ENABLE", "0")


def homes_of(settings: RolloutServers) -> list[list[int | None]]:
    """[server][tensor-parallel rank] -> the rank on the same GPU; None: no rank is. Collective."""
    ranks: list[Gpu | None] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, _own())
    return [[ranks.index(gpu) if gpu in ranks else None for gpu in gpus] for gpus in gpus_of_servers(settings)]


def gpus_of_servers(settings: RolloutServers) -> list[list[Gpu]]:
    """Of every server the run starts, those it uses, the first it sees. As rank 0 sees them, which starts it.

    Collective.
    """
    node, visible = on_first(lambda: (this_node(), visible_gpus()))
    seen = [list(map(str, gpus)) for gpus in settings.gpus] if settings.gpus else [visible] * settings.count
    return [[(node, gpu) for gpu in gpus[: settings.tp]] for gpus in seen]


def _own() -> Gpu:
    return this_node(), visible_gpus()[torch.cuda.current_device()]


def _refuse_away(servers: list[list[Gpu]], homes: list[list[int | None]]) -> None:
    for number, (gpus, ranks) in enumerate(zip(servers, homes, strict=True)):
        if None in ranks:
            raise UserError(
                f"rollout.sglang.sync: tensor needs a rank on each GPU of a server, and on GPU "
                f"{gpus[ranks.index(None)][1]} of server {number} there is none: {OTHER_WAYS} or distributed, or name "
                f"GPUs of ranks in rollout.sglang.gpus"
            )


def _refuse_shared(servers: list[list[Gpu]], homes: list[list[int | None]]) -> None:
    taken: set[Gpu] = set()
    for number, (gpus, ranks) in enumerate(zip(servers, homes, strict=True)):
        for gpu, rank in zip(gpus, ranks, strict=True):
            if rank is not None or gpu in taken:
                who = "another server" if rank is None else f"rank {rank}"
                raise UserError(
                    f"rollout.sglang.sync: distributed needs servers on GPUs of their own, and server {number} shares "
                    f"GPU {gpu[1]} with {who}: {OTHER_WAYS}, or to tensor where every server shares its GPUs with "
                    f"ranks; or name GPUs that nobody else uses in rollout.sglang.gpus"
                )
            taken.add(gpu)
