"""Where the servers that a run starts are on the nodes of its job: whether they fit, and which GPUs idle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_gopd.config.models import RolloutServers, Servers
from megatron_gopd.config.schema import Config
from megatron_gopd.errors import UserError

ROLLOUT = "rollout.sglang"


@dataclass(frozen=True)
class Node:
    """Of a job. Its ranks are on its first GPUs."""

    gpus: tuple[str, ...]  # each by what CUDA_VISIBLE_DEVICES calls it; none: the node computes on CPUs
    ranks: int
    name: str = "a node"


@dataclass(frozen=True)
class Idle:
    """GPUs without work, of all that a job has."""

    of: int = 0
    unused: int = 0  # neither a rank nor a server is on them
    waiting: int = 0  # a rank is on them, and no server: while servers on other ranks' GPUs sample, they idle

    @property
    def told(self) -> list[str]:
        """A clause for each kind there is."""
        unused = f"{self.unused} of the {self.of} GPUs have neither a rank nor a server"
        waiting = f"{self.waiting} of the {self.of} GPUs have no server, and idle while the others sample"
        return [said for said, count in ((unused, self.unused), (waiting, self.waiting)) if count]


def share_out(gpus: int, gpus_per_node: int) -> tuple[int, int]:
    """(nodes, GPUs of each). Raises UserError: there is a rest."""
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise UserError(f"{gpus} GPUs do not fill nodes of {gpus_per_node}; give another --gpus, or --nodes")
    return max(1, gpus // gpus_per_node), min(gpus, gpus_per_node)


def filled(gpus: int, nodes: int | None, usual: int) -> int:
    """GPUs of each of `nodes`; `usual` where nobody said how many there are. Raises UserError: there is a rest."""
    if nodes is None:
        return usual
    if gpus % nodes:
        raise UserError(f"--gpus {gpus} does not fill --nodes {nodes}: {gpus} % {nodes} = {gpus % nodes}")
    return gpus // nodes


def own_servers(config: Config) -> dict[str, Servers]:
    """{key: settings} of the servers that the run starts itself."""
    samples = config.algorithm.SAMPLES_STUDENT  # else teachers write, and the student is asked by evaluations only
    found = {}
    if config.rollout.engine == "sglang" and (samples or config.evaluation):
        found[ROLLOUT] = config.rollout.sglang
    for who, scorer in (config.scorers() if samples else config.named_teachers()).items():
        if scorer.engine == "sglang":
            found[f"{who}.server"] = scorer.server
    return {key: servers for key, servers in found.items() if not servers.urls}


def serving(key: str, servers: Servers, nodes: int) -> int:
    """On how many of a job's nodes, the first, they are. Raises UserError: `key` asks for more than there are."""
    if servers.nodes == "all":
        return nodes
    if servers.nodes > nodes:
        raise UserError(f"{key}.nodes: servers on {servers.nodes} nodes, and the job has {nodes}; say fewer, or all")
    return servers.nodes


def gpus_of_servers(servers: Servers, gpus: Sequence[str]) -> list[tuple[str, ...]]:
    """Those that each server of a node uses: the first of those it is given. Without a list, one server after the
    other has its own, from the first on where they share GPUs with ranks, and the last ones otherwise."""
    each, count = servers.gpus_each, servers.count
    if servers.gpus is not None:
        return [tuple(map(str, given[:each])) for given in servers.gpus]
    apart = isinstance(servers, RolloutServers) and not servers.shares_gpus
    first = max(0, len(gpus) - count * each) if apart else 0
    return [tuple(gpus[first + i * each : first + (i + 1) * each]) for i in range(count)]


def lay_out(config: Config, nodes: int, gpus: int) -> list[Node]:
    """A job that is still to be started, on `nodes` of `gpus` GPUs: with a rank on each GPU that is not a server's own.

    Raises:
        UserError: servers that do not fit, or leave no GPU to train.
    """
    names = tuple(map(str, range(gpus)))
    check_placement(config, [Node(names, gpus)] * nodes)
    servers = own_servers(config).get(ROLLOUT)
    apart = servers is not None and not servers.shares_gpus
    own = set().union(*gpus_of_servers(servers, names)) if apart else set()
    if len(own) == gpus:
        raise UserError(
            f"{ROLLOUT}: {_those(servers)} leave none of the {gpus} GPU(s) of a node to train; "
            f"lower {ROLLOUT}.count, or set {ROLLOUT}.colocated"
        )
    return [Node(names, gpus - len(own))] * nodes


def check_placement(config: Config, nodes: Sequence[Node]) -> None:
    """That the nodes of a job have room for the servers that it starts.

    Raises:
        UserError: names the first that does not fit.
    """
    for key, servers in own_servers(config).items():
        for node in nodes[: serving(key, servers, len(nodes))]:
            _check_node(key, servers, node)


def _check_node(key: str, servers: Servers, node: Node) -> None:
    if not node.gpus:
        return
    if servers.gpus is None and servers.count * servers.gpus_each > len(node.gpus):
        raise UserError(
            f"{key}: {_those(servers)} are more than the {len(node.gpus)} GPU(s) of {node.name}; "
            f"lower {key}.count, which is of each node, or the sizes in {key}.options"
        )
    for number, gpus in enumerate(gpus_of_servers(servers, node.gpus)):
        for gpu in gpus:
            if gpu not in node.gpus:
                raise UserError(
                    f"{key}.gpus: server {number} has GPU {gpu}, and {node.name} has {', '.join(node.gpus)} only; "
                    f"lower {key}.count, which is of each node, and list as many"
                )


def _those(servers: Servers) -> str:
    return f"{servers.count} server(s) of {servers.gpus_each} GPU(s)"


def idle(config: Config, nodes: Sequence[Node]) -> Idle:
    """What a placement that fits leaves without work."""
    own, unused, waiting = own_servers(config), 0, 0
    sampling = _on_gpus_of_ranks(config, own)
    for number, node in enumerate(nodes):
        served = {
            key: set().union(*gpus_of_servers(servers, node.gpus))
            for key, servers in own.items()
            if number < serving(key, servers, len(nodes))
        }
        ranks = set(node.gpus[: node.ranks])
        unused += len(set(node.gpus) - ranks - set().union(*served.values()))
        if sampling:
            waiting += len(ranks - set().union(*(served.get(key, ()) for key in sampling)))
    return Idle(sum(len(node.gpus) for node in nodes), unused, waiting)


def _on_gpus_of_ranks(config: Config, own: dict[str, Servers]) -> list[str]:
    """Keys of the servers that sample there, if all that is sampled is theirs."""
    if not config.algorithm.SAMPLES_STUDENT:
        writers = [f"teachers.{name}.server" for name in config.teachers]
        return writers if all(key in own for key in writers) else []
    return [ROLLOUT] if ROLLOUT in own and config.rollout.sglang.shares_gpus else []


def asked(config: Config, gpus: int, nodes: int | None, usual: int) -> list[Node]:
    """The nodes that `--gpus` and `--nodes` stand for, seen to have room for the servers and every layout.

    Raises:
        UserError: they have not.
    """
    found = lay_out(config, *share_out(gpus, filled(gpus, nodes, usual)))
    for who, settings in {"student": config.student, **config.scorers()}.items():
        settings.layout.span(sum(node.ranks for node in found), who)
    return found
