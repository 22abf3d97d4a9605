"""The layers Megatron's local backend lacks without Transformer Engine, under Transformer Engine's parameter names.

Same names (`linear_qkv.layer_norm_weight`) on every backend: one checkpoint and one weight mapping serve CPU and GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight in Hugging Face's order: normalised in float32, cast back, then scaled."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


class RMSNorm(torch.nn.Module):
    """RMS norm that also works under sequence parallelism (Megatron's torch norm refuses it)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # finalize_model_grads sums its gradient over tp

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNormColumnParallelLinear(ColumnParallelLinear):
    """Norm and linear in one module, named as Transformer Engine names them."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs):
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.layer_norm_weight = torch.nn.Parameter(torch.ones(input_size, dtype=config.params_dtype))
        self.layer_norm_weight.sequence_parallel = config.sequence_parallel
        self.eps = config.layernorm_epsilon

    def forward(self, x: Tensor, *args, **kwargs):
        return super().forward(rms_norm(x, self.layer_norm_weight, self.eps), *args, **kwargs)

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None):
        tensors = {key: t for key, t in self.state_dict(keep_vars=True).items() if "_extra_state" not in key}
        cut = {"weight": 0, "bias": 0}
        return make_sharded_tensors_for_checkpoint(
            tensors, prefix, cut, sharded_offsets, tp_group=self.tp_group, dp_cp_group=metadata["dp_cp_group"]
        )


class CausalAttention(MegatronModule):
    """core_attention on packed rows: torch's causal kernel row by row, so that no mask is ever built."""

    def __init__(self, config, layer_number, attn_mask_type, attention_type, softmax_scale=None, pg_collection=None, **_):
        super().__init__(config=config)
        self.tp_group = pg_collection.tp  # sharded_state_dict looks for it
        self.scale = softmax_scale or config.kv_channels**-0.5

    def forward(self, query, key, value, attention_mask, packed_seq_params=None, **_) -> Tensor:
        """query [t, heads, d], key and value [t, groups, d], rows end to end -> [t, heads * d]."""
        bounds = packed_seq_params.cu_seqlens_q.tolist()
        shared = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(shared, dim=1) if shared > 1 else x for x in (key, value))
        query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
        rows = [
            F.scaled_dot_product_attention(
                query[:, :, first:last], key[:, :, first:last], value[:, :, first:last], is_causal=True, scale=self.scale
            )
            for first, last in zip(bounds, bounds[1:], strict=False)
        ]
        return torch.cat(rows, dim=2)[0].transpose(0, 1).flatten(1)


class TorchBackend(LocalSpecProvider):
    """Megatron's hook for a backend, with the layers above."""

    def layer_norm(self, rms_norm=False, for_qk=False, has_residual=False):
        return RMSNorm

    def core_attention(self):
        return CausalAttention

    def fuse_layernorm_and_linear(self):
        return True

    def column_parallel_layer_norm_linear(self):
        return LayerNormColumnParallelLinear


def layer_spec(config: TransformerConfig) -> ModuleSpec:
    """One dense transformer layer."""
    backend = TorchBackend()
    qk_norm = backend.layer_norm(for_qk=True) if config.qk_layernorm else IdentityOp
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=LayerNormColumnParallelLinear,
            core_attention=backend.core_attention(),
            linear_proj=backend.row_parallel_linear(),
            q_layernorm=qk_norm,
            k_layernorm=qk_norm,
        ),
    )
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=IdentityOp,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=IdentityOp,
            mlp=get_mlp_module_spec_for_backend(backend=backend),
            mlp_bda=get_bias_dropout_add,
        ),
    )
