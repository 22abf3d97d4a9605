"""Megatron's distributed checkpoints (torch_dist): written in the background at one layout, read at any other."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue
from megatron.core.dist_checkpointing.utils import extract_nonpersistent, extract_sharded_base
from megatron.core.optimizer import MegatronOptimizer

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.model import Model, sharded_state, sharding
from megatron_gopd.mcore.repairs import among, each_rank_reads_for_itself
from megatron_gopd.mcore.unpickling import Reader, loading, refuse_extra_states
from megatron_gopd.runs.manifest import write_digest


def training_state(model: Model, optimizer: MegatronOptimizer, *, loading: bool) -> dict:
    """This rank's shards of weights and optimizer state, in a form that any layout can read. Collective."""
    weights = sharded_state(model.module, model.groups)
    with among(model.groups.intra_dist_opt):
        state = optimizer.sharded_state_dict(weights, is_loading=loading, metadata=sharding(model.groups))
    return {"model": weights, "optimizer": state}


def with_common_part(state: dict, source: int) -> dict:
    """What to save on this rank: `state`, or where it is empty, what rank `source` has beside shards.

    Megatron saves what is not sharded from rank 0, which may hold no part of the model. Collective over all ranks.
    """
    common = [extract_sharded_base(extract_nonpersistent(state)[1])[1] if dist.get_rank() == source else None]
    dist.broadcast_object_list(common, src=source)
    return state or common[0]


def load_training_state(model: Model, optimizer: MegatronOptimizer, loaded: dict) -> None:
    """Take what read() returned for training_state(loading=True)."""
    model.module.load_state_dict(loaded["model"])
    with among(model.groups.intra_dist_opt):
        optimizer.load_state_dict(loaded["optimizer"])


def random_state() -> dict:
    """The random number generators of this rank, as a sharded object of its own."""
    state = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "megatron": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    return {"random": ShardedObject("random", state, (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)}


def load_random_state(loaded: dict) -> None:
    state = loaded["random"]
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["megatron"])


def read(state: dict, folder: Path, *, whole: bool = True) -> dict:
    """The saved values for a state of sharded tensors and objects, in its shape. Collective over all ranks.

    `whole`: the ranks' parts make up the checkpoint; checked.
    Raises UserError: it lacks some, or is damaged.
    """
    Reader(folder).read_metadata()  # PyTorch would log the refusal, and go on to look for other metadata
    try:
        with loading(folder), each_rank_reads_for_itself():
            loaded = dist_checkpointing.load(state, str(folder), validate_access_integrity=whole)
    except (CheckpointingException, KeyError) as error:
        raise UserError(f"{folder}: does not hold this model: {str(error).splitlines()[0]}") from None
    refuse_extra_states(loaded.get("model", {}), folder)
    return loaded


class BackgroundWriter:
    """Writes one state after another, each from a forked process, which sees the weights as they were at the fork."""

    def __init__(self):
        self._calls = AsyncCallsQueue(persistent=False)

    def start(self, state: dict, folder: Path, then: Callable[[], None]) -> None:
        """Begin to write `state` into the empty `folder`; call `then` on every rank once all have written.

        Collective over all ranks; each passes its own shards. What is still being written is waited for.
        """
        self.finish()
        request = dist_checkpointing.save(state, str(folder), async_sharded_save=True, async_strategy="mcore")
        request.add_finalize_fn(then)
        if request.async_fn is not None:
            request = request._replace(async_fn=functools.partial(_write_with_digests, request.async_fn))
        self._calls.schedule_async_request(request)

    def finish(self) -> None:
        """Wait until all ranks have written. Collective.

        Raises:
            dist.checkpoint.api.CheckpointException: a rank could not write.
        """
        self._calls.maybe_finalize_async_calls(blocking=True)


def _write_with_digests(write: Callable, rank: int, buckets: list[tuple], answer) -> None:
    """Each rank's process knows the checksums of its own files, while they are still in memory."""
    write(rank, buckets, answer)
    with contextlib.suppress(OSError):  # of a write that has failed; otherwise the manifest makes good what is missing
        for path, *_ in buckets:
            write_digest(Path(path))
