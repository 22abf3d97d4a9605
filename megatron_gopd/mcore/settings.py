"""An architecture under a layout, in a precision -> Megatron's TransformerConfig, for the machine this is."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig

from megatron_gopd.config import Layout, schema
from megatron_gopd.machine import have_te
from megatron_gopd.mcore.architecture import Architecture

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_RECOMPUTE = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def transformer_config(
    architecture: Architecture,
    layout: Layout,
    dtype: schema.Dtype,
    *,
    fp8: schema.Fp8 | None = None,
    recompute: str = "none",
) -> TransformerConfig:
    """Megatron's configuration of a model.

    Raises:
        UserError: Transformer Engine is installed, and does not import.
    """
    return TransformerConfig(
        num_layers=architecture.layers,
        hidden_size=architecture.hidden_size,
        num_attention_heads=architecture.heads,
        num_query_groups=architecture.groups,
        kv_channels=architecture.head_dim,
        ffn_hidden_size=architecture.ffn_size,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.norm_eps,
        qk_layernorm=architecture.qk_norm,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        attention_softmax_in_fp32=True,
        softmax_scale=_softmax_scale(architecture),
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        sequence_parallel=architecture.uses_sequence_parallel(layout),
        params_dtype=_DTYPES[dtype],
        pipeline_dtype=_DTYPES[dtype],
        bf16=dtype == "bfloat16",
        perform_initialization=False,  # the weights come from the Hugging Face directory
        calculate_per_token_loss=True,  # gradients are summed: the token weights already are global means
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",  # variable lengths ask for it, also without experts
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        batch_p2p_comm=False,
        **_of_this_machine(dtype, bool(architecture.experts)),
        **_expert_settings(architecture),
        **_fp8_settings(fp8),
        **_RECOMPUTE[recompute],
    )


def _softmax_scale(architecture: Architecture) -> float | None:
    """YaRN lengthens cosines and sines, of queries and of keys: that is a factor of the scores. None: the usual one."""
    factor = architecture.rope_frequencies()[1] if architecture.rope_scaling else 1.0
    return None if factor == 1.0 else factor**2 * architecture.head_dim**-0.5


def _of_this_machine(dtype: str, experts: bool) -> dict:
    """Whose layers they are, and what is fused. In float32 Megatron's own: Transformer Engine multiplies in TF32."""
    gpu = torch.cuda.is_available()
    te = have_te() and dtype == "bfloat16"
    apex = gpu and importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    return {
        "transformer_impl": "transformer_engine" if te else "local",
        "use_cpu_initialization": not gpu,
        "gradient_accumulation_fusion": te or apex,
        "apply_rope_fusion": te,  # without it, repairs turn all rows at once
        "bias_activation_fusion": gpu,  # SwiGLU as one kernel, compiled by torch
        **({"moe_grouped_gemm": te, "moe_permute_fusion": te} if experts else {}),
    }


def _expert_settings(architecture: Architecture) -> dict:
    if architecture.experts is None:
        return {}
    return {
        "num_moe_experts": architecture.experts.count,
        "moe_ffn_hidden_size": architecture.experts.ffn_size,
        "moe_router_topk": architecture.experts.per_token,
        # softmax over the chosen k logits = softmax over all, chosen, normalised again
        "moe_router_pre_softmax": not architecture.experts.normalize_top_k,
        "moe_router_score_function": "softmax",
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_layer_freq": 1,
    }


def _fp8_settings(fp8: schema.Fp8 | None) -> dict:
    """Megatron's fields for FP8 through Transformer Engine."""
    if fp8 is None:
        return {}
    return {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "fp8_param": fp8.weights,
        "first_last_layers_bf16": fp8.first_last_layers_bf16,
        "num_layers_at_start_in_bf16": fp8.layers_at_start_bf16 if fp8.first_last_layers_bf16 else 0,
        "num_layers_at_end_in_bf16": fp8.layers_at_end_bf16 if fp8.first_last_layers_bf16 else 0,
    }
