"""Which ranks are on the GPUs of which servers, and which ways of updating weights that leaves."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.models import RolloutServers
from megatron_gopd.config.placement import gpus_of_servers
from megatron_gopd.errors import UserError
from megatron_gopd.machine import visible_gpus
from megatron_gopd.srun import this_node

Gpu = tuple[str, str]  # a node, and what CUDA_VISIBLE_DEVICES calls it there

OTHER_WAYS = "set rollout.sglang.sync to disk"


class Seen(NamedTuple):
    """By a rank."""

    node: str
    visible: list[str]  # GPUs, in its order
    own: int  # of these


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
    found = _gather()
    servers, homes = _of_servers(settings, found), _homes(settings, found)
    if settings.sync == "tensor":
        _refuse_away(servers, homes, settings.count)
    else:
        _refuse_shared(servers, homes, settings.count)
        _connect_as_sglang_does()


def _connect_as_sglang_does() -> None:
    """SGLang turns this off, and NCCL need not connect those that have it with those that have not (it is read when the
    first communicator is made; sglang/srt/entrypoints/engine.py)."""
    os.environ.setdefault("NCCL_CUMEM_ENABLE", "0")


def homes_of(settings: RolloutServers) -> list[list[int | None]]:
    """[server][tensor-parallel rank] -> the rank on the same GPU; None: no rank is. Collective."""
    return _homes(settings, _gather())


def _gather() -> list[Seen]:
    """Of every rank. Collective."""
    found: list[Seen] = [None] * dist.get_world_size()
    dist.all_gather_object(found, Seen(this_node(), visible_gpus(), torch.cuda.current_device()))
    return found


def _homes(settings: RolloutServers, found: list[Seen]) -> list[list[int | None]]:
    ranks = [(seen.node, seen.visible[seen.own]) for seen in found]
    return [[ranks.index(gpu) if gpu in ranks else None for gpu in gpus] for gpus in _of_servers(settings, found)]


def _of_servers(settings: RolloutServers, found: list[Seen]) -> list[list[Gpu]]:
    """Of every server the run starts, those it uses, the first it sees; in the order of a pool, node after node.

    As the first rank of its node sees them, which starts it.
    """
    firsts: dict[str, list[str]] = {}
    for seen in found:
        firsts.setdefault(seen.node, seen.visible)
    chosen = list(firsts)[: None if settings.nodes == "all" else settings.nodes]
    return [
        [(node, gpu) for gpu in gpus[: settings.tp]]
        for node in chosen
        for gpus in gpus_of_servers(settings, firsts[node])
    ]


def _refuse_away(servers: list[list[Gpu]], homes: list[list[int | None]], count: int) -> None:
    for number, (gpus, ranks) in enumerate(zip(servers, homes, strict=True)):
        if None in ranks:
            raise UserError(
                f"rollout.sglang.sync: tensor needs a rank on each GPU of a server, and on GPU "
                f"{gpus[ranks.index(None)][1]} of {_called(number, gpus, count)} there is none: "
                f"{OTHER_WAYS} or distributed, or name GPUs of ranks in rollout.sglang.gpus"
            )


def _refuse_shared(servers: list[list[Gpu]], homes: list[list[int | None]], count: int) -> None:
    taken: set[Gpu] = set()
    for number, (gpus, ranks) in enumerate(zip(servers, homes, strict=True)):
        for gpu, rank in zip(gpus, ranks, strict=True):
            if rank is not None or gpu in taken:
                who = "another server" if rank is None else f"rank {rank}"
                raise UserError(
                    f"rollout.sglang.sync: distributed needs servers on GPUs of their own, and "
                    f"{_called(number, gpus, count)} shares GPU {gpu[1]} with {who}: {OTHER_WAYS}, or to tensor "
                    f"where every server shares its GPUs with ranks; or name GPUs that nobody else uses in "
                    f"rollout.sglang.gpus"
                )
            taken.add(gpu)


def _called(number: int, gpus: list[Gpu], count: int) -> str:
    """A server of a pool, in a message: `count` stand on each node."""
    return f"server {number % count} of {gpus[0][0]}"
