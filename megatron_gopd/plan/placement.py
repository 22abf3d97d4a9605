"""Which GPUs do what: ranks of the trainer, servers, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan.decode import Engine

ITEM = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Placement:
    """embedded: an engine in every rank; colocated: servers on the trainer's GPUs, which they leave meanwhile; split:
    servers on some of the GPUs; disjoint: servers that others run, on GPUs of their own; none: nothing is sampled."""

    kind: Literal["embedded", "colocated", "split", "disjoint", "none"]
    world: int  # ranks that train
    engines: int
    engine: Engine

    @property
    def server_gpus(self) -> int:
        return self.engines * self.engine.tp if self.kind in ("split", "disjoint") else 0


def place(config: Config, gpus: int, gpus_per_node: int) -> Placement:
    """Raises UserError: GPUs that the servers and the trainer's layouts do not share out."""
    settings = config.rollout.sglang
    student = Architecture.read(config.student.model)
    itemsize = ITEM[config.student.dtype]
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise UserError(f"{gpus} GPUs do not fill nodes of {gpus_per_node}; give another --gpus, or --nodes")
    if config.algorithm.type == "sft":
        return Placement("none", gpus, 0, Engine(student, itemsize=itemsize))
    if config.rollout.engine == "transformers":
        return Placement("embedded", gpus, gpus, Engine(student, itemsize=itemsize, eager=True))
    tp = int(settings.options.get("tp-size", 1))
    engine = Engine(student, tp, itemsize)
    if settings.urls:
        return Placement("disjoint", gpus, len(settings.urls), engine)
    if settings.colocated:
        if settings.count * tp > gpus:
            raise UserError(f"rollout.sglang: {settings.count} servers of {tp} GPU(s) are more than the {gpus} GPUs")
        return Placement("colocated", gpus, settings.count, engine)
    world = gpus - settings.count * tp
    if world < 1:
        raise UserError(
            f"rollout.sglang: {settings.count} server(s) of {tp} GPU(s) leave none of {gpus} GPUs to train; set "
            f"rollout.sglang.count, or colocated: true"
        )
    return Placement("split", world, settings.count, engine)
