"""A Hugging Face config.json -> Megatron's TransformerConfig, or a refusal that says why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_gopd.config import Layout
from megatron_gopd.errors import UserError

SUPPORTED = ("llama", "qwen2", "qwen3")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class Architecture:
    """What a dense decoder needs to know of itself, read off config.json."""

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
    rope_factor: float | None  # llama3 scaling
    max_positions: int
    tied: bool
    qkv_bias: bool
    qk_norm: bool

    @classmethod
    def read(cls, folder: str | Path) -> Architecture:
        """Raises UserError: no config.json, an architecture or a feature that is not supported."""
        return cls.from_dict(read_config(folder), f"{folder}/config.json")

    @classmethod
    def from_dict(cls, hf: dict, where: str) -> Architecture:
        model_type = hf.get("model_type")
        if model_type not in SUPPORTED:
            raise UserError(f"{where}: model_type {model_type!r} is not supported; supported: {', '.join(SUPPORTED)}")
        _refuse_unsupported(hf, where)
        try:
            heads, hidden = hf["num_attention_heads"], hf["hidden_size"]
            rope = hf.get("rope_parameters") or {}
            return cls(
                model_type=model_type,
                vocab_size=hf["vocab_size"],
                hidden_size=hidden,
                ffn_size=hf["intermediate_size"],
                layers=hf["num_hidden_layers"],
                heads=heads,
                groups=hf.get("num_key_value_heads") or heads,
                head_dim=hf.get("head_dim") or hidden // heads,
                norm_eps=hf.get("rms_norm_eps", 1e-6),
                rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0),
                rope_factor=_llama3_factor(hf, where),
                max_positions=hf.get("max_position_embeddings", 0),
                tied=hf.get("tie_word_embeddings", False),
                qkv_bias=model_type == "qwen2",
                qk_norm=model_type == "qwen3",
            )
        except KeyError as error:
            raise UserError(f"{where}: the key {error} is missing; is this a complete Hugging Face model?") from None

    def padded_vocab(self, tp: int) -> int:
        """Vocabulary rows after padding, so that tp divides them."""
        return -(-self.vocab_size // tp) * tp

    def check_layout(self, layout: Layout, where: str) -> None:
        """Refuse a layout that this architecture cannot be cut into, showing the arithmetic."""
        for what, count in (("attention heads", self.heads), ("key-value heads", self.groups), ("ffn", self.ffn_size)):
            if count % layout.tp:
                raise UserError(
                    f"{where}: {count} {what} cannot be cut over tp = {layout.tp} ({count} % {layout.tp} = "
                    f"{count % layout.tp}); choose a tp that divides it"
                )
        if self.layers % layout.pp:
            raise UserError(f"{where}: {self.layers} layers cannot be cut over pp = {layout.pp}")
        for key in ("cp", "ep", "etp"):
            if getattr(layout, key) != 1:
                raise UserError(f"{where}: layout.{key} = {getattr(layout, key)} is not available for dense models yet")

    def transformer_config(self, layout: Layout, dtype: str) -> TransformerConfig:
        """Megatron's configuration of this model under `layout`, in `dtype` (a config.schema.Dtype)."""
        return TransformerConfig(
            num_layers=self.layers,
            hidden_size=self.hidden_size,
            num_attention_heads=self.heads,
            num_query_groups=self.groups,
            kv_channels=self.head_dim,
            ffn_hidden_size=self.ffn_size,
            normalization="RMSNorm",
            layernorm_epsilon=self.norm_eps,
            qk_layernorm=self.qk_norm,
            gated_linear_unit=True,
            activation_func=F.silu,
            add_bias_linear=False,
            add_qkv_bias=self.qkv_bias,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            attention_softmax_in_fp32=True,
            tensor_model_parallel_size=layout.tp,
            pipeline_model_parallel_size=layout.pp,
            sequence_parallel=layout.sequence_parallel and layout.tp > 1,
            params_dtype=_DTYPES[dtype],
            pipeline_dtype=_DTYPES[dtype],
            bf16=dtype == "bfloat16",
            transformer_impl="local",
            use_cpu_initialization=not torch.cuda.is_available(),
            perform_initialization=False,  # the weights come from the Hugging Face directory
            calculate_per_token_loss=True,  # gradients are summed: the token weights already are global means
            variable_seq_lengths=True,
            moe_token_dispatcher_type="alltoall",  # asked for by variable lengths, also without experts
            bias_activation_fusion=False,
            bias_dropout_fusion=False,
            masked_softmax_fusion=False,
            apply_rope_fusion=False,
            gradient_accumulation_fusion=False,
            persist_layer_norm=False,
            batch_p2p_comm=False,
        )


def read_config(folder: str | Path) -> dict:
    """config.json of a Hugging Face directory. Raises UserError."""
    path = Path(folder) / "config.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is no Hugging Face model directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None


def _refuse_unsupported(hf: dict, where: str) -> None:
    """What would silently compute another model."""
    refused = {
        "hidden_act": hf.get("hidden_act", "silu") not in ("silu", "swish"),
        "mlp_bias": bool(hf.get("mlp_bias")),
        "use_sliding_window": bool(hf.get("use_sliding_window")),
        "attention_bias": bool(hf.get("attention_bias")),
        "layer_types": any(kind != "full_attention" for kind in hf.get("layer_types") or ()),
        "partial_rotary_factor": (hf.get("partial_rotary_factor") or 1.0) != 1.0,
    }
    for key, unsupported in refused.items():
        if unsupported:
            raise UserError(f"{where}: {key} = {hf.get(key)!r} is not supported for {hf['model_type']} models")


def _llama3_factor(hf: dict, where: str) -> float | None:
    """The factor of llama3 RoPE scaling; None without scaling."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3" or any(rope.get(key) != value for key, value in _LLAMA3_ROPE.items()):
        raise UserError(
            f"{where}: RoPE scaling {rope} is not supported; supported: default, and llama3 with {_LLAMA3_ROPE}"
        )
    return float(rope["factor"])
