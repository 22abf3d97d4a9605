"""A Hugging Face directory <-> a Megatron checkpoint, streamed: neither direction holds the model in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import DTYPES, open_hf_weights, same_bits
from megatron_gopd.mcore.hf_folder import HFFolder
from megatron_gopd.mcore.megatron_folder import STATE, MegatronFolder, about, is_megatron_folder
from megatron_gopd.mcore.save import SHARD_BYTES, copy_side_files, new_folder, write_weights
from megatron_gopd.mcore.skeleton import Parameter, Skeleton, build_skeleton
from megatron_gopd.mcore.torch_dist import write_state
from megatron_gopd.runs import write_manifest


@torch.no_grad()
def hf_to_megatron(source: Path, target: Path, *, verify: bool = False) -> None:
    """Write the model in the Hugging Face directory `source` to the new folder `target`, for Megatron.

    Runs in one process, inside megatron_gopd.ranks.ranks.

    Raises:
        UserError: an unsupported architecture, weights that are not those config.json promises, damaged files, a
            `target` that exists or cannot be written; with `verify`, that it reads back otherwise. Nothing is written.
    """
    _refuse_ranks()
    architecture, weights = Architecture.read(source), open_hf_weights(source)
    skeleton = build_skeleton(architecture)
    dtypes = _dtypes(weights, skeleton)

    def chunks(parameter: Parameter) -> list[Tensor]:
        return parameter.to_chunks([weights.tensor(name) for name in parameter.rule.names])

    with new_folder(target) as folder:
        copy_side_files(source, folder)
        (folder / STATE).mkdir()
        write_state(folder / STATE, skeleton, dtypes, chunks)
        write_manifest(folder, about(architecture))
        if verify:
            _verify(weights, MegatronFolder(folder))


@torch.no_grad()
def megatron_to_hf(source: Path, target: Path, *, shard_bytes: int = SHARD_BYTES, verify: bool = False) -> None:
    """Write the weights in `source`, a converted model or a run's checkpoint, to the new folder `target`, for all else.

    Runs in one process, inside megatron_gopd.ranks.ranks.

    Raises:
        UserError: as hf_to_megatron; a config.json that differs from the architecture the checkpoint records.
    """
    _refuse_ranks()
    if not is_megatron_folder(source):
        raise UserError(f"{source} is no Megatron checkpoint of megatron-gopd: it has no folder {STATE}")
    weights = MegatronFolder(source)
    with new_folder(target) as folder, ThreadPoolExecutor(1) as aside:
        checked = aside.submit(weights.check)  # hashing takes about as long as reading
        try:
            copy_side_files(source, folder)
            write_weights(weights.tensors(), folder, weights.dtype, shard_bytes)
            if verify:
                _verify(HFFolder(folder), weights)
        finally:
            checked.result()  # what went wrong with a damaged file is this


def _dtypes(weights: HFFolder, skeleton: Skeleton) -> list[torch.dtype]:
    """The dtype of every parameter. Megatron keeps all layers of a parameter as one tensor, hence of one dtype."""
    found: dict[str, dict[str, str]] = {}  # Megatron's key -> dtype -> a Hugging Face tensor that has it
    for parameter in skeleton.parameters:
        for name in parameter.rule.names:
            dtype = weights.stored[weights.holder(name)].dtype
            found.setdefault(parameter.sharded.key, {}).setdefault(dtype, name)
    for names in found.values():
        if len(names) > 1:
            mixed = " and ".join(f"{name} as {dtype}" for dtype, name in names.items())
            raise UserError(
                f"{weights.folder} holds {mixed}; Megatron keeps them in one tensor: cast them to one dtype"
            )
    return [DTYPES[next(iter(found[parameter.sharded.key]))] for parameter in skeleton.parameters]


def _verify(weights: HFFolder, checkpoint: MegatronFolder) -> None:
    """Read both, bit for bit."""
    for name, tensor in checkpoint.tensors():
        if not same_bits(tensor, weights.tensor(name)):
            raise UserError(f"{name} does not read back as it was written; check the disk and the memory")


def _refuse_ranks() -> None:
    if dist.get_world_size() > 1:
        raise UserError("a conversion runs in one process; start it without torchrun")
