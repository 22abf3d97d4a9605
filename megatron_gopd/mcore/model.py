"""A decoder on Megatron-Core: one object that knows its architecture, layout and groups."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_gopd.config import Layout, schema
from megatron_gopd.machine import check_dtype, have_te
from megatron_gopd.mcore import fp8 as fp8_rules
from megatron_gopd.mcore import settings
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.groups import build_groups
from megatron_gopd.mcore.layers import block_spec

logging.getLogger("megatron.core").setLevel(logging.ERROR)  # "DEPRECATED" notices, once a model a rank


@dataclass
class Model:
    """A GPTModel and what is known of it. `module` is wrapped for training by policies.Student."""

    module: GPTModel
    architecture: Architecture
    config: TransformerConfig
    layout: Layout
    groups: ProcessGroupCollection

    @property
    def vocab_range(self) -> tuple[int, int]:
        """[first, last) token ids of this rank's shard of the vocabulary, padding left out."""
        rows = self.architecture.padded_vocab(self.layout.tp) // self.layout.tp
        first = rows * self.groups.tp.rank()
        return first, max(first, min(first + rows, self.architecture.vocab_size))

    @property
    def layer_offset(self) -> int:
        """Global index of this stage's first layer."""
        return get_transformer_layer_offset(self.config, vp_stage=None, pp_rank=self.groups.pp.rank())

    @property
    def is_last_stage(self) -> bool:
        return self.groups.pp.rank() == self.groups.pp.size() - 1

    @property
    def token_multiple(self) -> int:
        """What the tokens of a micro-batch on a context-parallel rank must be a multiple of."""
        of_gemm = fp8_rules.TOKENS[self.config.fp8_recipe] if self.config.fp8 else 1
        return of_gemm * (self.layout.tp if self.config.sequence_parallel else 1)

    def lm_head(self) -> torch.Tensor:
        """[vocab rows of this rank, hidden]; on the last stage."""
        if self.module.share_embeddings_and_output_weights:
            return self.module.shared_embedding_or_output_weight()
        return self.module.output_layer.weight


def build_model(
    folder: str | Path, layout: Layout, dtype: str, *, fp8: schema.Fp8 | None = None, recompute: str = "none"
) -> Model | None:
    """An uninitialised model of the architecture in `folder`, for mcore.weights.load to fill; None outside its ranks.

    Collective over all ranks: every rank builds every model, in the same order.

    Raises:
        UserError: an unsupported architecture, a layout it cannot be cut into, a precision that cannot be had here.
    """
    architecture = Architecture.read(folder)
    check_model(architecture, layout, dtype, fp8, str(folder))
    groups = build_groups(layout)
    if groups is None:
        return None
    config = settings.transformer_config(architecture, layout, dtype, fp8=fp8, recompute=recompute)
    config.amax_group_func = lambda: groups.tp_dp_cp  # repairs hand it to Transformer Engine's delayed scaling
    tensor_parallel.model_parallel_cuda_manual_seed(  # dropout is 0: no random number is drawn, but the tracker must be
        1, tp_rank=groups.tp.rank(), ep_rank=groups.ep.rank(), etp_rank=groups.expt_tp.rank(), force_reset_rng=True
    )
    return Model(build_module(architecture, config, layout, groups), architecture, config, layout, groups)


def check_model(architecture: Architecture, layout: Layout, dtype: str, fp8: schema.Fp8 | None, where: str) -> None:
    """Raises UserError: a model that cannot be cut or held as asked, on any machine or on this one."""
    check_cut(architecture, layout, dtype, fp8, where)
    check_precision_here(dtype, fp8, where)


def check_cut(architecture: Architecture, layout: Layout, dtype: str, fp8: schema.Fp8 | None, where: str) -> None:
    """Raises UserError: a model that no machine can cut or hold as asked."""
    architecture.check_layout(layout, where)
    fp8_rules.check_fp8(fp8, dtype, architecture, layout, where)


def check_precision_here(dtype: str, fp8: schema.Fp8 | None, where: str) -> None:
    """Raises UserError: a precision that this machine cannot compute in."""
    fp8_rules.check_fp8_here(fp8, where)
    check_dtype(dtype, where)
    have_te()


def build_module(
    architecture: Architecture, config: TransformerConfig, layout: Layout, groups: ProcessGroupCollection
) -> GPTModel:
    """This rank's part of the decoder, uninitialised; on torch's default device, or on this rank's GPU."""
    stage, stages = groups.pp.rank(), groups.pp.size()
    layers = get_num_layers_to_build(config, vp_stage=None, pp_rank=stage)
    module = GPTModel(
        config,
        block_spec(config, layers),
        vocab_size=architecture.padded_vocab(layout.tp),
        max_sequence_length=architecture.max_positions,
        pre_process=stage == 0,
        post_process=stage == stages - 1,
        parallel_output=True,
        position_embedding_type="rope",
        rotary_base=architecture.rope_theta,
        share_embeddings_and_output_weights=architecture.tied,
        pg_collection=groups,
    )
    if architecture.rope_scaling:
        frequencies, _ = architecture.rope_frequencies()
        module.rotary_pos_emb.inv_freq = frequencies if config.use_cpu_initialization else frequencies.cuda()
    if not config.use_cpu_initialization:
        _move_what_is_left(module)
    return module


def _move_what_is_left(module: torch.nn.Module) -> None:
    """Megatron makes some weights, such as routers', on the CPU, wherever the others are. To this rank's GPU."""
    for part in module.modules():
        held = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
        if any(tensor.device.type == "cpu" for tensor in held):
            part.cuda(torch.cuda.current_device())


def sharded_state(module: torch.nn.Module, groups: ProcessGroupCollection) -> dict:
    """Name -> Megatron's ShardedTensor, its factory, or a ShardedObject: what dist_checkpointing saves and loads."""
    return module.sharded_state_dict(metadata=sharding(groups))


def sharding(groups: ProcessGroupCollection) -> dict:
    """How Megatron lays out what it saves: so that any layout can read it, optimizer state too."""
    return {
        "dp_cp_group": groups.dp_cp,
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }
