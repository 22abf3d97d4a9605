"""The policy's weights in a folder of every node that has servers: written there, from what its own ranks draw."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.save import SHARD_BYTES, copy_side_files, write_weights
from megatron_gopd.ranks import on_first
from megatron_gopd.runs import atomic_folder
from megatron_gopd.srun import this_node

Tensors = Iterator[tuple[str, Tensor]]


class WeightsFolder:
    """In shared memory, or on a disk; the first rank of each node fills one for the servers there. Collective."""

    def __init__(self, config: Config, writers: list[int]):
        """`writers`: these ranks, rank 0 among them. What a killed attempt left in their way is removed."""
        self._config, self._parent = config, Path(config.rollout.sglang.sync_folder)
        self._writes = dist.get_rank() in writers
        run = Path(config.run.folder, config.run.name).absolute()
        self._name = f"megatron-gopd-{run.name}-{zlib.crc32(os.fsencode(run)):08x}-"
        if self._writes:
            for left in self._parent.glob(f"*{glob.escape(self._name)}*"):
                shutil.rmtree(left, ignore_errors=True)  # a run has one process at a time
        dist.barrier()  # where nodes share the folder, before anybody writes

    @contextlib.contextmanager
    def filled(self, tensors: Tensors) -> Iterator[dict[str, str]]:
        """Within the block the folders are there: of every node, by its name. All ranks draw `tensors`.

        Raises:
            UserError: a node cannot write one.
        """
        version = on_first(lambda: secrets.token_hex(4))
        folder = self._parent / f"{self._name}{version}-{this_node()}"
        try:
            yield self._fill(folder, tensors)
        finally:
            if self._writes:
                shutil.rmtree(folder, ignore_errors=True)

    def _fill(self, folder: Path, tensors: Tensors) -> dict[str, str]:
        problem = self._write(folder, tensors) if self._writes else None
        for _ in tensors:  # what a writer that failed has left, and what the other ranks draw along
            pass
        told: list = [None] * dist.get_world_size()
        dist.all_gather_object(told, (this_node(), str(folder) if self._writes else None, problem))
        for node, _, problem in told:
            if problem:
                raise UserError(
                    f"the weights could not be written to {self._parent} of {node}: {problem}; "
                    f"set rollout.sglang.sync_folder to a folder with room that the servers can read"
                )
        return {node: path for node, path, _ in told if path}

    def _write(self, folder: Path, tensors: Tensors) -> str | None:
        student = self._config.student
        try:
            with atomic_folder(folder) as filling:
                copy_side_files(student.model, filling)
                write_weights(tensors, filling, student.dtype, SHARD_BYTES)
        except OSError as error:
            return str(error)
        return None
