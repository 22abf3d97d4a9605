"""Which Hugging Face tensors make up a Megatron parameter, and how they are cut over tensor parallelism.

Every rule is linear and goes both ways, so the same table carries weights in, weights out and gradients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_gopd.mcore.architecture import Architecture


@dataclass(frozen=True)
class Whole:
    """The same tensor on every rank."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def cut(self, tensors: list[Tensor], rank: int, size: int) -> Tensor:
        return tensors[0]

    def join(self, shards: list[Tensor]) -> list[Tensor]:
        return [shards[0]]


@dataclass(frozen=True)
class Split(Whole):
    """One tensor, cut along `dim`; `rows` of it where padding follows (the vocabulary)."""

    dim: int
    rows: int | None = None
    padded: int | None = None

    def cut(self, tensors, rank, size):
        whole = tensors[0]
        if self.padded is not None and self.padded > len(whole):
            whole = torch.cat([whole, whole.new_zeros(self.padded - len(whole), *whole.shape[1:])])
        return whole.chunk(size, dim=self.dim)[rank]

    def join(self, shards):
        whole = _joined(shards, self.dim)
        return [whole if self.rows is None else whole[: self.rows]]


@dataclass(frozen=True)
class Gated:
    """gate and up projections: each is cut, and a rank holds its gate rows on top of its up rows."""

    names: tuple[str, str]

    def cut(self, tensors, rank, size):
        return torch.cat([t.chunk(size)[rank] for t in tensors])

    def join(self, shards):
        halves = [shard.chunk(2) for shard in shards]
        return [_joined([half[which] for half in halves]) for which in (0, 1)]


@dataclass(frozen=True)
class Qkv:
    """q, k, v (weights or biases), interleaved by key-value group: [q heads of the group | k | v]."""

    names: tuple[str, str, str]
    groups: int
    head_dim: int

    def cut(self, tensors, rank, size):
        per_group = [t.reshape(self.groups, -1, self.head_dim, *t.shape[1:]) for t in tensors]
        return torch.cat(per_group, dim=1).chunk(size)[rank].flatten(0, 2)

    def join(self, shards):
        whole = _joined(shards)
        whole = whole.reshape(self.groups, -1, self.head_dim, *whole.shape[1:])
        parts = whole.split([whole.shape[1] - 2, 1, 1], dim=1)
        return [part.flatten(0, 2) for part in parts]


Rule = Whole | Gated | Qkv


def _joined(shards: list[Tensor], dim: int = 0) -> Tensor:
    return shards[0] if len(shards) == 1 else torch.cat(shards, dim)


def rule_for(name: str, architecture: Architecture, tp: int) -> Rule:
    """The rule of a Megatron parameter, its layer and expert numbered globally.

    Raises:
        KeyError: a name the table does not know.
    """
    vocabulary = {"dim": 0, "rows": architecture.vocab_size, "padded": architecture.padded_vocab(tp)}
    if name == "embedding.word_embeddings.weight":
        return Split("model.embed_tokens.weight", **vocabulary)
    if name == "output_layer.weight":
        head = "model.embed_tokens.weight" if architecture.tied else "lm_head.weight"
        return Split(head, **vocabulary)
    if name == "decoder.final_layernorm.weight":
        return Whole("model.norm.weight")
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if match is None:
        raise KeyError(name)
    return _layer_rule(match[2], f"model.layers.{match[1]}", architecture)


def _layer_rule(name: str, layer: str, architecture: Architecture) -> Rule:
    def qkv(kind: str) -> Qkv:
        names = tuple(f"{layer}.self_attn.{which}_proj.{kind}" for which in "qkv")
        return Qkv(names, architecture.groups, architecture.head_dim)

    rules = {
        "self_attention.linear_qkv.layer_norm_weight": lambda: Whole(f"{layer}.input_layernorm.weight"),
        "self_attention.linear_qkv.weight": lambda: qkv("weight"),
        "self_attention.linear_qkv.bias": lambda: qkv("bias"),
        "self_attention.q_layernorm.weight": lambda: Whole(f"{layer}.self_attn.q_norm.weight"),
        "self_attention.k_layernorm.weight": lambda: Whole(f"{layer}.self_attn.k_norm.weight"),
        "self_attention.linear_proj.weight": lambda: Split(f"{layer}.self_attn.o_proj.weight", dim=1),
        "mlp.linear_fc1.layer_norm_weight": lambda: Whole(f"{layer}.post_attention_layernorm.weight"),
        "mlp.linear_fc1.weight": lambda: Gated((f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight")),
        "mlp.linear_fc2.weight": lambda: Split(f"{layer}.mlp.down_proj.weight", dim=1),
        "pre_mlp_layernorm.weight": lambda: Whole(f"{layer}.post_attention_layernorm.weight"),
        "mlp.router.weight": lambda: Whole(f"{layer}.mlp.gate.weight"),
    }
    if name in rules:
        return rules[name]()
    expert, which = _EXPERT.fullmatch(name).groups()
    expert = f"{layer}.mlp.experts.{expert}"
    if which == "linear_fc1":
        return Gated((f"{expert}.gate_proj.weight", f"{expert}.up_proj.weight"))
    return Split(f"{expert}.down_proj.weight", dim=1)


_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12])\.weight")
