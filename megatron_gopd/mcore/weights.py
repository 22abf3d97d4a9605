"""Weights between a Hugging Face directory and a Megatron model, any layout, streamed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.machine import device
from megatron_gopd.mcore.fp8 import plain, start_master_from
from megatron_gopd.mcore.front_door import open_weights
from megatron_gopd.mcore.mapping import Rule, Whole, rule_for
from megatron_gopd.mcore.megatron_folder import MegatronFolder
from megatron_gopd.mcore.model import Model
from megatron_gopd.mcore.receivers import Receivers, gather, hand_out, who

_EXPERT = re.compile(r"(?<=\.local_experts\.)\d+")
_LAYER = re.compile(r"(?<=^decoder\.layers\.)\d+")


@torch.no_grad()
def load(model: Model, folder: str | Path) -> None:
    """Fill `model` with the weights in `folder`, a Hugging Face directory or a Megatron checkpoint, each rank reading
    what it holds. Collective over the model's ranks.

    Raises:
        UserError: see open_weights; values that are not finite.
    """
    source = open_weights(folder)
    if isinstance(source, MegatronFolder):
        source.load_into(model)
        return
    for name, param in _parameters(model):
        group = _cut_over(name, model)
        rule = rule_for(_numbered_globally(name, model), model.architecture, model.layout.tp)
        shard = rule.cut([source.tensor(hf_name) for hf_name in rule.names], group.rank(), group.size())
        param.copy_(shard)
        start_master_from(param, shard)


@torch.no_grad()
def export(model: Model, receivers: Collection[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, whole tensor) for every parameter; one parameter (of each expert rank) in memory at a time.

    Collective over the model's ranks: each draws the whole iterator. Those of `receivers`, ranks of the job, get
    everything (None: all do); the others get names and empty tensors, and nothing is sent for their sake.
    """
    wanted = Receivers(model.groups, receivers)
    mine = {_layer_numbered_globally(name, model): param for name, param in _parameters(model)}
    stages: list[list] = [None] * model.layout.pp
    held = [(name, param.shape, param.dtype) for name, param in mine.items()]
    dist.all_gather_object(stages, held, group=model.groups.pp)
    for stage, entries in enumerate(stages):
        for name, shape, dtype in entries:
            if name == "output_layer.weight" and model.architecture.tied:
                continue
            to = wanted.of_expert_shards if _EXPERT.search(name) else wanted.of_shards
            room = shape if model.groups.pp.rank() in to else 0
            shard = plain(mine[name]) if name in mine else torch.empty(room, dtype=dtype, device=device())
            hand_out(shard, stage, model.groups.pp, to)
            yield from _whole(name, shard, model, wanted)


@torch.no_grad()
def export_part(model: Model, senders: Collection[int]) -> Iterator[tuple[str, Tensor]]:
    """The same of what the pipeline stage and the expert group of this rank hold, for the one of `senders` that sends
    it: parameters of no expert first, by the sender of the first expert group; whole tensors, put together in groups of
    tensor parallelism. The other ranks of these draw along, and get nothing.
    """
    sends = dist.get_rank() in senders
    to = who(sends and model.groups.ep.rank() == 0, model.groups.tp)
    to_experts = who(sends, model.groups.expt_tp)
    mine = [(_numbered_globally(name, model), param) for name, param in _parameters(model)]
    for name, param in sorted(mine, key=lambda named: _EXPERT.search(named[0]) is not None):
        ranks, group = (to_experts if _EXPERT.search(name) else to), _cut_over(name, model)
        if not ranks or (name == "output_layer.weight" and model.architecture.tied):
            continue
        rule = rule_for(name, model.architecture, model.layout.tp)
        shards = [plain(param)] if type(rule) is Whole else gather(plain(param), group, ranks)
        if group.rank() in ranks:
            yield from _named(rule, shards)


_GROUPED = re.compile(r"\.experts\.(linear_fc[12])\.weight(\d+)$")


def _parameters(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Named parameters; those of a grouped GEMM (`linear_fc1.weight3`) under the names of single experts."""
    for name, param in model.module.named_parameters():
        yield _GROUPED.sub(r".experts.local_experts.\2.\1.weight", name), param


def _whole(name: str, shard: Tensor, model: Model, wanted: Receivers) -> Iterator[tuple[str, Tensor]]:
    """A parameter's Hugging Face tensors, its shards gathered; for an expert's, those of every expert rank."""
    expert = _EXPERT.search(name)
    if expert is None:
        rule = rule_for(name, model.architecture, model.layout.tp)
        shards = [shard] if type(rule) is Whole else gather(shard, model.groups.tp, wanted.of_tp)
        yield from _named(rule, shards if wanted.here else None)
        return
    parts = gather(shard, model.groups.expt_tp, wanted.of_expt_tp) or [shard]
    of_rank = [gather(part, model.groups.ep, wanted.of_ep) for part in parts]
    for rank in range(model.layout.ep):
        number = int(expert[0]) + rank * _experts_a_rank(model)
        rule = rule_for(_EXPERT.sub(str(number), name), model.architecture, model.layout.tp)
        yield from _named(rule, [shards[rank] for shards in of_rank] if wanted.here else None)


def _named(rule: Rule, shards: list[Tensor] | None) -> Iterator[tuple[str, Tensor]]:
    tensors = [torch.empty(0)] * len(rule.names) if shards is None else rule.join(shards)
    yield from zip(rule.names, tensors, strict=True)


def _cut_over(name: str, model: Model) -> dist.ProcessGroup:
    return model.groups.expt_tp if _EXPERT.search(name) else model.groups.tp


def _numbered_globally(name: str, model: Model) -> str:
    first = model.groups.ep.rank() * _experts_a_rank(model)
    return _EXPERT.sub(lambda expert: str(int(expert[0]) + first), _layer_numbered_globally(name, model))


def _layer_numbered_globally(name: str, model: Model) -> str:
    return _LAYER.sub(lambda layer: str(int(layer[0]) + model.layer_offset), name)


def _experts_a_rank(model: Model) -> int:
    experts = model.architecture.experts
    return experts.count // model.layout.ep if experts else 0
