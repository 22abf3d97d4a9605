"""Repairs of Megatron that only show with Transformer Engine: by what it would call."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from megatron_gopd.config import Layout
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.groups import groups_of_one
from megatron_gopd.mcore.model import build_module
from megatron_gopd.mcore.repairs import everywhere
from megatron_gopd.mcore.settings import transformer_config
from tests.tiny_models import SIZES

DENSE = Architecture.from_dict(SIZES | {"model_type": "qwen3", "head_dim": 16}, "x")


def test_a_head_is_made_without_apex_where_the_other_layers_fuse_their_gradients(one_rank):
    config = transformer_config(DENSE, Layout(), "float32")
    config = dataclasses.replace(config, gradient_accumulation_fusion=True)
    module = build_module(DENSE, config, Layout(), groups_of_one())
    assert not module.output_layer.gradient_accumulation_fusion
    assert config.gradient_accumulation_fusion


@pytest.mark.parametrize("given", ["a model's group", None])
def test_maxima_of_delayed_scaling_are_taken_over_the_models_own_ranks(given):
    asked = []

    def context_of(config, layer_no=-1, is_init=False):
        if module.parallel_state.model_parallel_is_initialized():
            asked.append(module.parallel_state.get_amax_reduction_group(with_context_parallel=True))
        return layer_no, is_init

    module = SimpleNamespace(parallel_state=None, get_fp8_context=context_of)
    everywhere._amaxes_are_of_the_model(module)
    config = SimpleNamespace(amax_group_func=lambda: given) if given else SimpleNamespace()
    assert module.get_fp8_context(config, 3, is_init=True) == (3, True)
    assert asked == [given]


def test_without_transformer_engine_there_are_no_maxima():
    module = SimpleNamespace(get_fp8_context=torch.nn.Identity)
    everywhere._amaxes_are_of_the_model(module)
    assert module.get_fp8_context is torch.nn.Identity
