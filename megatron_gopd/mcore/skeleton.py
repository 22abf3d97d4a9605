"""A whole model without its weights: which tensors Megatron keeps in a checkpoint, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from torch import Tensor

from megatron_gopd.config import Layout
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.groups import groups_of_one
from megatron_gopd.mcore.mapping import Gated, Rule, rule_for
from megatron_gopd.mcore.model import build_module, sharded_state
from megatron_gopd.mcore.settings import transformer_config


@dataclass(frozen=True)
class Parameter:
    """A parameter of the uncut model: its Hugging Face tensors, and how Megatron cuts it into what it stores."""

    rule: Rule
    sharded: ShardedTensor | ShardedTensorFactory  # its data is on the meta device

    @property
    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """What the rule's Hugging Face tensors must measure."""
        tensors = self.rule.join([self.sharded.data])
        return {name: tuple(tensor.shape) for name, tensor in zip(self.rule.names, tensors, strict=True)}

    def chunks(self) -> list[ShardedTensor]:
        """What Megatron stores, without its data."""
        return self.sharded.build() if isinstance(self.sharded, ShardedTensorFactory) else [self.sharded]

    def to_chunks(self, tensors: list[Tensor]) -> list[Tensor]:
        """The rule's Hugging Face tensors -> the data of `chunks`, without a copy where both keep the same."""
        return tensors if isinstance(self.rule, Gated) else [self.rule.cut(tensors, 0, 1)]

    def from_chunks(self, chunks: list[Tensor]) -> list[Tensor]:
        """The data of `chunks` -> the rule's Hugging Face tensors."""
        return chunks if isinstance(self.rule, Gated) else self.rule.join(chunks)


@dataclass(frozen=True)
class Skeleton:
    """Everything Megatron stores of a model: parameters in the order of the model, and small objects of its layers."""

    parameters: list[Parameter]
    objects: list[ShardedObject]


def build_skeleton(architecture: Architecture) -> Skeleton:
    """Ask Megatron itself, with a model on the meta device. Needs an initialised process group; not collective."""
    groups, layout = groups_of_one(), Layout()
    config = replace(  # float32 takes Megatron's own layers, which can be made on any device
        transformer_config(architecture, layout, "float32"),
        use_cpu_initialization=True,
    )
    with torch.device("meta"):
        module = build_module(architecture, config, layout, groups)
    state = sharded_state(module, groups)
    objects = [sharded for sharded in state.values() if isinstance(sharded, ShardedObject)]
    parameters = [
        Parameter(rule_for(name, architecture, layout.tp), sharded)
        for name, sharded in state.items()
        if not isinstance(sharded, ShardedObject)
    ]
    return Skeleton(parameters, objects)
