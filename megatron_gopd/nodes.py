"""The machines of this job: which there are, and which rank acts for each."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import torch.distributed as dist

from megatron_gopd.cores import usable_cores
from megatron_gopd.errors import UserError
from megatron_gopd.srun import this_node

Result = TypeVar("Result")


class Node(NamedTuple):
    name: str  # as SLURM writes it
    ranks: tuple[int, ...]  # on it, in order
    address: str  # at which the other nodes reach it; the loopback where there are none
    cores: frozenset[int]  # that its ranks may run on, together

    @property
    def first_rank(self) -> int:
        """Acts for the node."""
        return self.ranks[0]


@dataclass(frozen=True)
class Nodes:
    """The machines of the job, in the order of their first ranks."""

    all: tuple[Node, ...]

    @classmethod
    def of_job(cls) -> Self:
        """Collective over the ranks of the job, by gloo."""
        mine = this_node(), address_towards(os.environ.get("MASTER_ADDR", "127.0.0.1")), usable_cores()
        told: list[tuple[str, str, frozenset[int]]] = [mine] * dist.get_world_size()
        dist.all_gather_object(told, mine)
        found: dict[str, Node] = {}
        for rank, (name, address, cores) in enumerate(told):
            before = found.get(name, Node(name, (), address, frozenset()))
            found[name] = before._replace(ranks=(*before.ranks, rank), cores=before.cores | cores)
        first, *others = found.values()
        return cls((first._replace(address=_address_of_first(others)), *others))

    @property
    def here(self) -> Node:
        """The node that this rank is on."""
        return next(node for node in self.all if dist.get_rank() in node.ranks)

    @property
    def acts(self) -> bool:
        """Whether this rank acts for its node."""
        return self.here.first_rank == dist.get_rank()

    def each(self, function: Callable[[], Result]) -> dict[str, Result]:
        """Call `function` once on every node; every rank gets what it returned there. Collective.

        Raises UserError on every rank: what the first of the nodes that failed raised, led by the names of all that
        raised the same, unless all nodes did.
        """
        answer: tuple[Result | None, UserError | None] = (None, None)
        if self.acts:
            try:
                answer = function(), None
            except UserError as error:
                answer = None, error
        answers = [answer] * dist.get_world_size()
        dist.all_gather_object(answers, answer)
        errors = {node.name: answers[node.first_rank][1] for node in self.all if answers[node.first_rank][1]}
        if errors:
            error = next(iter(errors.values()))
            alike = [name for name, other in errors.items() if str(other) == str(error)]
            everywhere = len(alike) == len(self.all)
            raise error if everywhere else type(error)(f"on {', '.join(alike)}: {error}")
        return {node.name: answers[node.first_rank][0] for node in self.all}


def _address_of_first(others: list[Node]) -> str:
    """Of rank 0's node. Its way to itself may be one that no other node can take: 127.0.1.1, as Debian names a host to
    itself. Collective."""
    if not others:
        return "127.0.0.1"
    own = [address_towards(others[0].address)]
    dist.broadcast_object_list(own, src=0)
    return own[0]


def address_towards(host: str, port: int = 80) -> str:
    """This host's address on the network that leads to `host`. Raises OSError: its name is not known, or no way is."""
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: chooses the route, sends nothing
            return probe.getsockname()[0]
    raise OSError(f"no network leads to {host}")
