"""The nodes of this job, each with the rank that acts for it."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import torch.distributed as dist

from megatron_gopd.srun import this_node


class Node(NamedTuple):
    name: str  # as SLURM writes it
    first_rank: int  # of those on it: acts for the node
    address: str  # at which the other nodes reach it; the loopback where there are none


def nodes() -> list[Node]:
    """Every node with its first rank, in order of these. Collective over all ranks, by gloo."""
    everywhere: list[tuple[str, str]] = [("", "")] * dist.get_world_size()
    dist.all_gather_object(everywhere, (this_node(), address_towards(os.environ.get("MASTER_ADDR", "127.0.0.1"))))
    found: dict[str, Node] = {}
    for rank, (name, address) in enumerate(everywhere):
        found.setdefault(name, Node(name, rank, address))
    first, *others = found.values()
    if not others:
        return [first._replace(address="127.0.0.1")]
    # the way to itself may be one that no other node can take: 127.0.1.1, as Debian names a host to itself
    own = [address_towards(others[0].address)]
    dist.broadcast_object_list(own, src=0)
    return [first._replace(address=own[0]), *others]


def address_towards(host: str, port: int = 80) -> str:
    """This host's address on the network that leads to `host`. Raises OSError: its name is not known."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # of a datagram socket: chooses the route, sends nothing
        return probe.getsockname()[0]
