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
from megatron_gopd.mcore.mapping import Rule, rule_for
from megatron_gopd.mcore.model import build_module, sharded_state


@dataclass(frozen=True)
class Parameter:
    """A parameter of the uncut model: its Hugging Face tensors, and how Megatron cuts it into what it stores."""

    rule: Rule
    sharded: ShardedTensor | ShardedTensorFactory  # its data is on the meta device

    @property
    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """What the rule's Hugging Face tensors must measure."""
        return {name: tuple(t.shape) for name, t in zip(self.rule.names, self.split(self.sharded.data), strict=True)}

    def split(self, whole: Tensor) -> list[Tensor]:
        """The parameter -> its Hugging Face tensors, in the rule's order."""
        return self.rule.join([whole])

    def chunks(self, whole: Tensor | None = None) -> list[ShardedTensor]:
        """What Megatron stores, with the data of `whole` or none: gate and up apart, all else in one piece."""
        sharded = self.sharded
        if whole is not None:
            changes = {"dtype": whole.dtype} if isinstance(sharded, ShardedTensor) else {}
            sharded = replace(sharded, data=whole, **changes)
        return sharded.build() if isinstance(sharded, ShardedTensorFactory) else [sharded]

    def merge(self, chunks: list[Tensor]) -> Tensor:
        """The data of `chunks` -> the parameter."""
        return self.sharded.merge_fn(chunks) if isinstance(self.sharded, ShardedTensorFactory) else chunks[0]


@dataclass(frozen=True)
class Skeleton:
    """Everything Megatron stores of a model: parameters in the order of the model, and small objects of its layers."""

    parameters: list[Parameter]
    objects: list[ShardedObject]


def build_skeleton(architecture: Architecture) -> Skeleton:
    """Ask Megatron itself, with a model on the meta device. Needs an initialised process group; not collective."""
    groups, layout = groups_of_one(), Layout()
    config = replace(  # the local layers: Transformer Engine's bear the same names, but want a GPU
        architecture.transformer_config(layout, "float32"),
        transformer_impl="local",
        moe_grouped_gemm=False,
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
