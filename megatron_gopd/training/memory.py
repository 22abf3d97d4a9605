"""What a run keeps on its GPUs: decided before the first weight is read, and told where it was not enough."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.placement import Node
from megatron_gopd.errors import UserError
from megatron_gopd.ranks import on_first

if TYPE_CHECKING:
    from megatron_gopd.plan.of_run import Taken

PLAN = "megatron_gopd.plan.of_run:take"  # of another room, run by another process
PHASES = {"rollout": "rollout", "score": "score", "train": "update", "sync": "sync"}  # spans -> phases of a plan
GIB = 2**30
BY_HAND = (
    "student.recompute, student.offload, teachers.NAME.offload and, of colocated servers, "
    "rollout.sglang.options.mem-fraction-static"
)


def take_levers(config: Config, nodes: list[Node]) -> Taken | None:
    """Levers at `auto` as fast as fits on all ranks together. Collective. None: there are no GPUs, nothing is scarce.

    Raises:
        UserError: the memory cannot be counted.
    """
    if not torch.cuda.is_available():
        return None
    free, whole = torch.cuda.mem_get_info()
    shared = max(-(-node.ranks // max(1, len(node.gpus))) for node in nodes)  # ranks of a card
    least = torch.tensor([free / shared, whole / shared], dtype=torch.float64)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    free, whole = least.tolist()
    return on_first(lambda: counted(config, nodes, torch.cuda.get_device_name(), whole, free))


def counted(config: Config, *of_run) -> Taken:
    """By a process of its own, which has neither a GPU nor the ranks of this job."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=_alone) as pool:
            return pool.submit(resolve_name(PLAN), config, *of_run).result()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot count the memory of this run ({type(error).__name__}: {error}); set {BY_HAND} by hand"
        ) from error


def _alone() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def explained(error: torch.OutOfMemoryError, taken: Taken | None, span: str) -> UserError:
    """`error` in the words of the plan: what was counted for the phase, what was allocated, what to change."""
    from megatron_gopd.plan.words import phase_in_words

    told = [str(error).splitlines()[0]]
    if taken:
        counted = [phase for phase in taken.phases if phase.name == PHASES.get(span)]
        told += [f"counted: {phase_in_words(phase)} of {taken.usable_bytes / GIB:.1f} usable" for phase in counted]
    if torch.cuda.is_available():
        told.append(f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB were allocated at most")
    return UserError(
        f"out of GPU memory in the phase {span}: {'; '.join(told)}. Lower training.max_tokens_per_micro_batch, or save "
        f"memory by hand: {BY_HAND} (`megatron-gopd plan` prices each)"
    )
