"""Which GPUs do what: ranks of the trainer, servers, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from megatron_gopd.config import Config
from megatron_gopd.config.models import COLOCATED_MEMORY, Model, Servers
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.decode import Engine

ITEM = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Placement:
    """embedded: an engine in every rank; colocated: servers on the trainer's GPUs, which they leave meanwhile;
    resident: which they do not leave; split: servers on some of the GPUs; disjoint: servers that others run, on GPUs
    of their own; none: nothing is sampled."""

    kind: Literal["embedded", "colocated", "resident", "split", "disjoint", "none"]
    world: int  # ranks that train
    engines: int
    engine: Engine
    a_server: int = 1  # engines of one server: its dp-size
    fraction: float | None = None  # mem-fraction-static, where it is set
    copies: int = 1  # models that an embedded engine holds

    @property
    def server_gpus(self) -> int:
        return self.engines * self.engine.tp if self.kind in ("split", "disjoint") else 0

    @property
    def shares_gpus(self) -> bool:
        """Whether servers are on the trainer's GPUs."""
        return self.kind in ("colocated", "resident")


def place(config: Config, gpus: int, gpus_per_node: int) -> Placement:
    """Raises UserError: GPUs that the servers and the trainer's layouts do not share out."""
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise UserError(f"{gpus} GPUs do not fill nodes of {gpus_per_node}; give another --gpus, or --nodes")
    if config.algorithm.type == "sft":
        return _writers(config, gpus, gpus_per_node)
    student, servers = config.student, config.rollout.sglang
    if config.rollout.engine == "transformers":
        return Placement("embedded", gpus, gpus, _engine(student, eager=True))
    if servers.urls:
        return _served("disjoint", gpus, student, servers, "rollout.sglang")
    found = _served("colocated" if servers.colocated else "split", gpus, student, servers, "rollout.sglang")
    of_servers = found.engines * found.engine.tp
    _own_servers_fit(servers, of_servers, gpus, gpus_per_node, "rollout.sglang")
    if servers.colocated:
        return found
    if of_servers >= gpus:
        raise UserError(
            f"rollout.sglang: {servers.count} server(s) of {of_servers // servers.count} GPU(s) leave none of {gpus} "
            f"GPUs to train; set rollout.sglang.count, or colocated: true"
        )
    return replace(found, world=gpus - of_servers)


def _writers(config: Config, gpus: int, gpus_per_node: int) -> Placement:
    """Of what SFT imitates: teachers, all as large as the largest, in every rank or behind servers that stay."""
    if not config.teachers:
        return Placement("none", gpus, 0, _engine(config.student))
    found, of_servers = [], 0
    for name, teacher in config.teachers.items():
        if teacher.engine == "megatron":
            found.append(Placement("embedded", gpus, gpus, _engine(teacher, eager=True)))
            continue
        kind, key = "disjoint" if teacher.server.urls else "resident", f"teachers.{name}.server"
        found.append(_served(kind, gpus, teacher, teacher.server, key))
        if kind == "resident":
            of_servers += found[-1].engines * found[-1].engine.tp
            _own_servers_fit(teacher.server, of_servers, gpus, gpus_per_node, key)
    largest = max(found, key=lambda one: one.engine.weight_bytes)
    if largest.kind == "embedded":
        return replace(largest, copies=sum(one.kind == "embedded" for one in found))
    return replace(largest, engines=sum(one.engines for one in found if one.kind == largest.kind))


def _engine(model: Model, tp: int = 1, *, eager: bool = False) -> Engine:
    return Engine(Architecture.read(model.model), tp, ITEM[model.dtype], eager)


def _served(kind: str, world: int, model: Model, servers: Servers, key: str) -> Placement:
    """Raises UserError: options that SGLang would refuse."""
    tp, dp, engine = servers.tp, int(servers.flags.get("dp-size", 1)), _engine(model, servers.tp)
    if engine.architecture.heads % tp:
        raise UserError(f"{key}.options: {engine.architecture.heads} attention heads cannot be cut over tp-size {tp}")
    fraction = servers.flags.get(name := "mem-fraction-static", COLOCATED_MEMORY if kind == "colocated" else None)
    try:
        fraction = fraction and float(fraction)
    except ValueError:
        raise UserError(f"{key}.options.{name}: {fraction!r} is not a number") from None
    return Placement(kind, world, (len(servers.urls) or servers.count) * dp, engine, dp, fraction)


def _own_servers_fit(servers: Servers, of_servers: int, gpus: int, gpus_per_node: int, key: str) -> None:
    """A run starts its servers beside rank 0."""
    if of_servers > gpus:
        each = f"{of_servers // servers.count} GPU(s)"
        raise UserError(f"{key}: {servers.count} server(s) of {each} are more than the {gpus} GPUs")
    if of_servers > gpus_per_node:
        raise UserError(
            f"{key}: {of_servers} GPUs of servers are more than the {gpus_per_node} of rank 0's node, where a run "
            f"starts them; lower count, or name those of other nodes in {key}.urls (megatron-gopd submit --serve-urls)"
        )
