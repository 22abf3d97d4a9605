"""Where the servers of one pool stand: on this node, and on the others of the job."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_gopd.config.placement import serving
from megatron_gopd.config.schema import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.nodes import Node, Nodes
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.servers.keeper import Keeper, KeptProcess, Orders
from megatron_gopd.servers.launch import Launch, start
from megatron_gopd.servers.process import ServerProcess
from megatron_gopd.srun import this_node


class Here:
    """This node: its servers listen on the loopback, which others who use it reach too, and want the key."""

    def __init__(self, label: str = "", key: Path | None = None):
        """`label`: the node's name in those of servers; "": it is the only one. `key`: the file with it; None: whoever
        is on this machine may ask."""
        self.node, self.label, self._key = this_node(), label, key
        self.token = key.read_text() if key else None

    async def start(self, launch: Launch) -> tuple[ServerProcess, str]:
        """See launch.start."""
        return start(launch, key=self._key)

    def leave(self) -> None:
        """Nothing to do: the pool has stopped them."""


class There:
    """Another node: its servers listen on its network, and want the token."""

    def __init__(self, node: str, orders: Orders, token: str):
        self.node = self.label = node
        self._orders, self.token = orders, token

    async def start(self, launch: Launch) -> tuple[KeptProcess, str]:
        return await self._orders.start(launch)

    def leave(self) -> None:
        self._orders.give({"end": True})


class Homes:
    """The nodes on which a pool's servers stand; collective, close() too.

    `each` are they for rank 0, where the pool is; the other nodes' first ranks keep the servers of theirs.
    """

    def __init__(self, key: str, settings: Servers, logs: Path):
        """`key`: of `settings`. Raises UserError: it wants more nodes than there are, or they differ in their GPUs."""
        self.nodes = nodes_of_servers(key, settings)
        self.each: list[Here | There] = [Here()]
        self._keeper: Keeper | None = None
        self._key: Path | None = None
        if self.nodes:
            self._key = on_first(lambda: _new_key(logs))
            self._spread()

    @property
    def first_ranks(self) -> list[int]:
        """One for each node with servers; rank 0 where others run them."""
        return [node.first_rank for node in self.nodes] or [0]

    def close(self) -> None:
        """End the servers of this node that are kept for rank 0; its pool is closed before."""
        for home in self.each:
            home.leave()
        if self._keeper:
            self._keeper.close()
        if self._key and is_first():
            self._key.unlink(missing_ok=True)

    def _spread(self) -> None:
        if len(self.nodes) == 1:
            self.each = [Here(key=self._key if is_first() else None)]
            return
        _refuse_unlike(self.nodes)
        store = dist.distributed_c10d._get_default_store()
        prefix = on_first(lambda: f"servers-{secrets.token_hex(4)}")

        def own_client(node: Node) -> dist.Store:
            return dist.PrefixStore(f"{prefix}/{node.name}", store.clone())  # that waits for nobody else's answers

        if is_first():
            here, *others = self.nodes
            token = self._key.read_text()
            there = [There(node.name, Orders(own_client(node), node.name), token) for node in others]
            self.each = [Here(here.name, self._key), *there]
        elif mine := [node for node in self.nodes if node.first_rank == dist.get_rank()]:
            self._keeper = Keeper(own_client(mine[0]), mine[0].address, self._key)


def nodes_of_servers(key: str, settings: Servers) -> Sequence[Node]:
    """Those of the job on which `settings` has servers started; at urls, none. Collective.

    Raises:
        UserError: it asks for more than there are.
    """
    if settings.urls:
        return []
    found = Nodes.of_job().all
    return found[: serving(key, settings, len(found))]


def _refuse_unlike(nodes: Sequence[Node]) -> None:
    """Servers of nodes with different numbers of GPUs: count and gpus are every node's. Collective."""
    seen: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(seen, torch.cuda.device_count())
    counts = {node.name: seen[node.first_rank] for node in nodes}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(
            f"servers are to stand on nodes with different numbers of GPUs ({told}), and count and gpus are the same "
            f"on each: ask for nodes that are alike, or for servers on fewer (nodes)"
        )


def _new_key(logs: Path) -> Path:
    """A file that nobody else can read."""
    path = logs / f".key-{secrets.token_hex(4)}"
    logs.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path
