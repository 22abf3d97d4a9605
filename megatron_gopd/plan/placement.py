"""Which GPUs do what: ranks of the trainer, servers, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from megatron_gopd.config import Config
from megatron_gopd.config.models import Model, Servers
from megatron_gopd.config.placement import ROLLOUT, Idle, Node, gpus_of_servers, idle, lay_out, serving, share_out
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.decode import Engine

ITEM = {"float32": 4, "bfloat16": 2}
SHARE = "mem-fraction-static"  # of what is free when a server starts, that for its weights and KV cache


@dataclass(frozen=True)
class Placement:
    """embedded: an engine in every rank; colocated: servers on the trainer's GPUs, which they leave meanwhile;
    resident: which they do not leave; split: servers on some GPUs of a node; disjoint: servers that others run, on
    GPUs of their own; none: nothing is sampled."""

    kind: Literal["embedded", "colocated", "resident", "split", "disjoint", "none"]
    world: int  # ranks that train
    engines: int
    engine: Engine
    a_server: int = 1  # engines of one server: its dp-size
    fraction: float | None = None  # SHARE, where it is set or was decided
    by_memory: bool = False  # it was decided
    copies: int = 1  # models that an embedded engine holds
    server_gpus: int = 0  # of their own
    ranks_per_node: int = 0
    idle: Idle = Idle()
    most_engines: int = 0  # with a server wherever ranks have GPUs for one; 0: those that sample are elsewhere

    @property
    def shares_gpus(self) -> bool:
        """Whether servers are on the trainer's GPUs."""
        return self.kind in ("colocated", "resident")


def place(config: Config, gpus: int, gpus_per_node: int) -> Placement:
    """Of a job that is still to be started. Raises UserError: GPUs that servers and layouts do not share out."""
    return on_nodes(config, lay_out(config, *share_out(gpus, gpus_per_node)))


def on_nodes(config: Config, nodes: list[Node]) -> Placement:
    """Raises UserError: servers that cannot be."""
    world, of_node = sum(node.ranks for node in nodes), nodes[0].ranks
    sources = _samplers if config.algorithm.SAMPLES_STUDENT else _writers
    found = sources(config, world, nodes)
    return replace(found, world=world, ranks_per_node=of_node, idle=idle(config, nodes))


def _samplers(config: Config, world: int, nodes: list[Node]) -> Placement:
    student, servers = config.student, config.rollout.sglang
    if config.rollout.engine != "sglang":  # one of the user's own is counted as the embedded one
        return Placement("embedded", world, world, _engine(student, embedded=True))
    own = "colocated" if servers.colocated else "resident" if servers.shares_gpus else "split"
    return _served("disjoint" if servers.urls else own, world, student, servers, ROLLOUT, nodes)


def _writers(config: Config, world: int, nodes: list[Node]) -> Placement:
    """Of what SFT imitates: teachers, all as large as the largest, in every rank or behind servers that stay.

    Raises:
        UserError: servers of two teachers on one GPU.
    """
    if not config.teachers:
        return Placement("none", world, 0, _engine(config.student))
    found, taken = [], set()
    for name, teacher in config.teachers.items():
        if teacher.engine == "megatron":
            found.append(Placement("embedded", world, world, _engine(teacher, embedded=True)))
            continue
        kind, key = "disjoint" if teacher.server.urls else "resident", f"teachers.{name}.server"
        found.append(_served(kind, world, teacher, teacher.server, key, nodes))
        here = set().union(*gpus_of_servers(teacher.server, nodes[0].gpus)) if kind == "resident" else set()
        if twice := sorted(here & taken):
            raise UserError(
                f"{key}: GPU {twice[0]} of a node has a server of another teacher, and the plan counts one server a "
                f"GPU; name others in {key}.gpus"
            )
        taken |= here
    largest = max(found, key=lambda one: one.engine.weight_bytes)
    if largest.kind == "embedded":
        return replace(largest, copies=sum(one.kind == "embedded" for one in found))
    alike = [one for one in found if one.kind == largest.kind]
    return replace(largest, engines=sum(one.engines for one in alike), server_gpus=sum(o.server_gpus for o in alike))


def _engine(model: Model, tp: int = 1, *, embedded: bool = False) -> Engine:
    return Engine(Architecture.read(model.model), tp, ITEM[model.dtype], embedded)


def _served(kind: str, world: int, model: Model, servers: Servers, key: str, nodes: list[Node]) -> Placement:
    """Raises UserError: options that SGLang would refuse."""
    tp, dp, engine = servers.tp, int(servers.flags.get("dp-size", 1)), _engine(model, servers.tp)
    if engine.architecture.heads % tp:
        raise UserError(f"{key}.options: {engine.architecture.heads} attention heads cannot be cut over tp-size {tp}")
    try:
        fraction = float(servers.flags[SHARE]) if SHARE in servers.flags else None
    except ValueError:
        raise UserError(f"{key}.options.{SHARE}: {servers.flags[SHARE]!r} is not a number") from None
    count = len(servers.urls) or servers.count * serving(key, servers, len(nodes))
    own_gpus = count * servers.gpus_each if kind in ("split", "disjoint") else 0
    most = 0
    if kind in ("colocated", "resident") and key == ROLLOUT:
        most = max(count, len(nodes) * (len(nodes[0].gpus) // max(1, servers.gpus_each))) * dp
    return Placement(kind, world, count * dp, engine, dp, fraction, server_gpus=own_gpus, most_engines=most)
