"""The layers Megatron's local backend lacks without Transformer Engine, under Transformer Engine's parameter names.

Same names (`linear_qkv.layer_norm_weight`) on every backend: one checkpoint and one weight mapping serve CPU and GPU.
"""

from __future__ import annotations

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import get_mlp_module_spec_for_backend
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor

from megatron_gopd.mcore.attention import CausalAttention
from megatron_gopd.mcore.norm import rms_norm


def _ones(size: int, config: TransformerConfig) -> torch.nn.Parameter:
    """A norm's weight, where Megatron creates the weights of linear layers."""
    where = {} if config.use_cpu_initialization else {"device": torch.cuda.current_device()}
    return torch.nn.Parameter(torch.ones(size, dtype=config.params_dtype, **where))


class RMSNorm(torch.nn.Module):
    """RMS norm that also works under sequence parallelism (Megatron's torch norm refuses it)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_):
        super().__init__()
        self.eps = eps
        self.weight = _ones(hidden_size, config)
        self.weight.sequence_parallel = config.sequence_parallel  # finalize_model_grads sums its gradient over tp

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNormColumnParallelLinear(ColumnParallelLinear):
    """Norm and linear in one module, named as Transformer Engine names them."""

    def __init__(self, input_size: int, output_size: int, *, config: TransformerConfig, **kwargs):
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.layer_norm_weight = _ones(input_size, config)
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


class ExpertBackend(TorchBackend):
    """The same for the experts, whose norm is the layer's."""

    def fuse_layernorm_and_linear(self):
        return False


def block_spec(config: TransformerConfig, layers: int) -> TransformerBlockSubmodules:
    """`layers` equal layers and the final norm; Transformer Engine's where Megatron was configured for it."""
    if config.transformer_impl == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        layer = get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            qk_layernorm=config.qk_layernorm,
        )
        return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=TENorm)
    return TransformerBlockSubmodules(layer_specs=[layer_spec(config)] * layers, layer_norm=RMSNorm)


def layer_spec(config: TransformerConfig) -> ModuleSpec:
    """One transformer layer without Transformer Engine, dense or with experts."""
    backend = TorchBackend()
    experts = config.num_moe_experts
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
            pre_mlp_layernorm=RMSNorm if experts else IdentityOp,  # the router reads the normed states too
            mlp=get_mlp_module_spec_for_backend(
                backend=ExpertBackend() if experts else backend, num_experts=experts, moe_grouped_gemm=False
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
