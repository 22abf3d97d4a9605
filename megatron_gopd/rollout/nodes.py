"""The nodes of this job as its ranks see them, and whether the servers that it starts have room there."""

from __future__ import annotations

import os

import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.placement import Node, check_placement, idle, own_servers
from megatron_gopd.machine import visible_gpus
from megatron_gopd.srun import this_node


def gpus_here(config: Config) -> tuple[str, ...]:
    """Those that this process sees; and those that its servers are given by name, where it was not shown all."""
    gpus = dict.fromkeys(visible_gpus())
    if gpus and "CUDA_VISIBLE_DEVICES" in os.environ:
        given = [of_server for servers in own_servers(config).values() for of_server in servers.gpus or []]
        gpus |= dict.fromkeys(str(gpu) for of_server in given for gpu in of_server)
    return tuple(gpus)


def check_nodes(config: Config) -> tuple[list[Node], list[str]]:
    """The nodes of this job, and what idles on them. Collective.

    Raises:
        UserError: servers that do not fit.
    """
    nodes = _nodes_of_job(config)
    check_placement(config, nodes)
    return nodes, idle(config, nodes).told


def _nodes_of_job(config: Config) -> list[Node]:
    ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (this_node(), gpus_here(config)))
    on_node: dict[str, list[tuple[str, ...]]] = {}
    for name, gpus in ranks:
        on_node.setdefault(name, []).append(gpus)
    alike = len({gpus for _, gpus in ranks}) == 1
    return [
        Node(tuple(dict.fromkeys(gpu for gpus in seen for gpu in gpus)), len(seen), "a node" if alike else name)
        for name, seen in on_node.items()
    ]
