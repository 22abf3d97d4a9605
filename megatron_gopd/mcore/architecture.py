"""What a decoder is, read off a Hugging Face config.json, or a refusal that says why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from megatron_gopd.config import Layout
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.hf_config import Fields, config_class, read_config, refuse_unknown_keys
from megatron_gopd.mcore.rope import RopeScaling, read_rope

MOST_LAYERS, MOST_EXPERTS = 2048, 4096  # of a model, and of its layers; the largest there are have a tenth
SUPPORTED = ("llama", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of every layer."""

    count: int
    per_token: int
    ffn_size: int
    normalize_top_k: bool


@dataclass(frozen=True)
class Architecture:
    """What a decoder needs to know of itself, read off config.json."""

    model_type: str
    vocab_size: int
    hidden_size: int
    ffn_size: int
    layers: int
    heads: int
    groups: int  # key-value heads
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_positions: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool
    experts: Experts | None

    @classmethod
    def read(cls, folder: str | Path) -> Architecture:
        """Raises UserError: no config.json, an architecture or a feature that is not supported."""
        return cls.from_dict(read_config(folder), f"{folder}/config.json")

    @classmethod
    def from_dict(cls, hf: dict, where: str) -> Architecture:
        model_type = hf.get("model_type")
        if model_type not in SUPPORTED:
            raise UserError(f"{where}: model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED)}")
        fields = Fields(hf, where)
        _refuse_unsupported(hf, fields, where)
        refuse_unknown_keys(hf, where)
        heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
        usual = config_class(model_type)
        theta, scaling = read_rope(hf, where)
        found = cls(
            model_type=model_type,
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden,
            ffn_size=fields.count("intermediate_size"),
            layers=fields.count("num_hidden_layers", most=MOST_LAYERS),
            heads=heads,
            groups=fields.count("num_key_value_heads", _unless_null(hf, "num_key_value_heads", usual) or heads),
            head_dim=fields.count("head_dim", _unless_null(hf, "head_dim", usual) or max(1, hidden // heads)),
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=fields.count("max_position_embeddings", usual.max_position_embeddings, most=2**31),
            tied=fields.flag("tie_word_embeddings", False),
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type in ("qwen3", "qwen3_moe"),
            experts=_experts(hf, fields, where) if model_type == "qwen3_moe" else None,
        )
        found._refuse_impossible(where)
        return found

    def _refuse_impossible(self, where: str) -> None:
        """Sizes that no model can have together."""
        if self.heads % self.groups:
            raise UserError(
                f"{where}: num_attention_heads {self.heads} is no multiple of num_key_value_heads {self.groups}"
            )
        if self.head_dim % 2:
            raise UserError(f"{where}: head_dim {self.head_dim} is odd, but rotary embeddings turn pairs of values")
        if self.experts and self.experts.per_token > self.experts.count:
            raise UserError(f"{where}: num_experts_per_tok {self.experts.per_token} of {self.experts.count} experts")

    @property
    def context(self) -> int:
        """Positions that the model is meant for."""
        return self.rope_scaling.context(self.max_positions) if self.rope_scaling else self.max_positions

    def rope_frequencies(self) -> tuple[Tensor, float]:
        """Of a model with scaling: see RopeScaling.frequencies."""
        return self.rope_scaling.frequencies(self.rope_theta, self.head_dim, self.max_positions)

    def padded_vocab(self, tp: int) -> int:
        """Vocabulary rows after padding, so that tp divides them."""
        return -(-self.vocab_size // tp) * tp

    def check_layout(self, layout: Layout, where: str) -> None:
        """Refuse a layout that this architecture cannot be cut into, showing the arithmetic."""
        feed_forward = {"ffn": self.ffn_size} if self.experts is None else {}
        cuts = [(what, count, "tp") for what, count in (feed_forward | {"attention heads": self.heads}).items()]
        cuts += [("key-value heads", self.groups, "tp"), ("layers", self.layers, "pp")]
        if self.experts:
            cuts += [("experts", self.experts.count, "ep"), ("expert ffn", self.experts.ffn_size, "etp")]
        for what, count, key in cuts:
            size = getattr(layout, key)
            if count % size:
                fitting = ", ".join(str(n) for n in range(1, min(count, 64) + 1) if count % n == 0)
                raise UserError(
                    f"{where}: {count} {what} cannot be cut over {key} = {size} ({count} % {size} = {count % size}); "
                    f"{key} may be {fitting}"
                )
        if self.experts is None and (layout.ep, layout.etp) != (1, 1):
            raise UserError(
                f"{where}: layout.ep = {layout.ep}, etp = {layout.etp}: a dense model has no experts; omit them"
            )

    def uses_sequence_parallel(self, layout: Layout) -> bool:
        """At tp > 1 where asked for, and always with experts: Megatron routes each token on one rank only."""
        return layout.tp > 1 and (layout.sequence_parallel or self.experts is not None)


def _refuse_unsupported(hf: dict, fields: Fields, where: str) -> None:
    """What would silently compute another model."""
    refused = {
        "hidden_act": hf.get("hidden_act", "silu") not in ("silu", "swish"),
        "mlp_bias": bool(hf.get("mlp_bias")),
        "use_sliding_window": bool(hf.get("use_sliding_window")),
        "attention_bias": bool(hf.get("attention_bias")),
        "layer_types": any(kind != "full_attention" for kind in fields.names("layer_types")),
        "mlp_only_layers": bool(hf.get("mlp_only_layers")),
        "decoder_sparse_step": hf.get("decoder_sparse_step", 1) != 1,
        "per_layer_config": bool(hf.get("per_layer_config")),
        "is_encoder_decoder": bool(hf.get("is_encoder_decoder")),
    }
    for key, unsupported in refused.items():
        if unsupported:
            raise UserError(f"{where}: {key} = {hf.get(key)!r} is not supported for {hf['model_type']} models")


def _unless_null(hf: dict, key: str, usual: type) -> int | None:
    """What transformers takes for a key that is not there; it takes null for "as many as fit"."""
    return None if key in hf else getattr(usual, key, None)


def _experts(hf: dict, fields: Fields, where: str) -> Experts:
    spellings = [key for key in ("num_local_experts", "num_experts") if hf.get(key) is not None]  # transformers 5, 4
    if len(counts := {fields.count(key, most=MOST_EXPERTS) for key in spellings}) > 1:
        raise UserError(f"{where}: {' and '.join(spellings)} differ: {', '.join(map(str, sorted(counts)))}")
    return Experts(
        count=fields.count(spellings[0] if spellings else "num_experts", most=MOST_EXPERTS),
        per_token=fields.count("num_experts_per_tok"),
        ffn_size=fields.count("moe_intermediate_size"),
        normalize_top_k=fields.flag("norm_topk_prob", False),
    )
