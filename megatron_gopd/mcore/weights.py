"""Weights between a Hugging Face directory and a Megatron model, any layout, streamed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.hf_folder import HFFolder
from megatron_gopd.mcore.mapping import Whole, rule_for
from megatron_gopd.mcore.model import Model


@torch.no_grad()
def load(model: Model, folder: str | Path) -> None:
    """Fill `model` with the weights in `folder`, each rank reading what it holds.

    Raises:
        UserError: tensors missing, of another shape, not finite; damaged files.
    """
    source = HFFolder(folder)
    tp, rank = model.layout.tp, model.groups.tp.rank()
    for name, param in model.module.named_parameters():
        rule = rule_for(_numbered_globally(name, model), model.architecture, tp)
        shard = rule.cut([source.tensor(hf_name) for hf_name in rule.names], rank, tp)
        if shard.shape != param.shape:
            shapes = ", ".join(f"{hf_name} {list(source.shape(hf_name))}" for hf_name in rule.names)
            raise UserError(
                f"{folder}: {shapes} does not fit config.json, which asks for {list(param.shape)} on each of "
                f"{tp} tensor-parallel rank(s); weights and config.json belong to different models"
            )
        param.copy_(shard)


@torch.no_grad()
def export(model: Model) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, whole tensor) for every parameter, on every rank; one parameter in memory at a time.

    Collective over the model's groups: every rank draws the whole iterator.
    """
    mine = {_numbered_globally(name, model): param for name, param in model.module.named_parameters()}
    stages: list[list] = [None] * model.layout.pp
    held = [(name, param.shape, param.dtype) for name, param in mine.items()]
    dist.all_gather_object(stages, held, group=model.groups.pp)
    for stage, entries in enumerate(stages):
        for name, shape, dtype in entries:
            if name == "output_layer.weight" and model.architecture.tied:
                continue
            shard = mine[name].detach() if name in mine else torch.empty(shape, dtype=dtype, device=_device())
            if model.layout.pp > 1:
                dist.broadcast(shard, group=model.groups.pp, group_src=stage)
            rule = rule_for(name, model.architecture, model.layout.tp)
            yield from zip(rule.names, rule.join(_shards(shard, rule, model)), strict=True)


def _shards(shard: Tensor, rule, model: Model) -> list[Tensor]:
    if model.layout.tp == 1 or type(rule) is Whole:
        return [shard]
    shards = [torch.empty_like(shard) for _ in range(model.layout.tp)]
    dist.all_gather(shards, shard.contiguous(), group=model.groups.tp)
    return shards


def _numbered_globally(name: str, model: Model) -> str:
    return re.sub(r"(?<=^decoder\.layers\.)\d+", lambda layer: str(int(layer[0]) + model.layer_offset), name)


def _device() -> torch.device:
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
