"""Role settings -> Megatron's own configuration, built and checked by Megatron."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.config import Layout
from megatron_gopd.config.schema import Fp8
from megatron_gopd.errors import UserError
from megatron_gopd.mcore import settings as settings_room
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.fp8 import check_fp8, check_fp8_here
from megatron_gopd.mcore.settings import transformer_config
from tests.tiny_models import EXPERTS, SIZES

DENSE = SIZES | {"model_type": "qwen3", "head_dim": 16}
MIXTURE = SIZES | {"model_type": "qwen3_moe"} | EXPERTS


def settings(hf: dict = DENSE, layout: str = "", dtype: str = "bfloat16", **keys):
    return transformer_config(Architecture.from_dict(hf, "x"), Layout.parse(layout), dtype, **keys)


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("form", ["hybrid", "e4m3"])
def test_fp8_reaches_megatron(form, recipe):
    config = settings(fp8=Fp8(format=form, recipe=recipe))
    assert (config.fp8, config.fp8_recipe, config.fp8_param) == (form, recipe, False)


def test_layers_at_both_ends_can_stay_in_bf16():
    fp8 = Fp8(recipe="tensorwise", first_last_layers_bf16=True, layers_at_start_bf16=2, layers_at_end_bf16=1)
    config = settings(fp8=fp8)
    assert config.first_last_layers_bf16
    assert (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16) == (2, 1)


def test_fp8_without_bf16_is_refused():
    with pytest.raises(UserError, match="student: fp8 goes with dtype: bfloat16, not float32"):
        check_fp8(Fp8(), "float32", Architecture.from_dict(DENSE, "x"), Layout(), "student")


def test_delayed_scaling_has_no_bf16_ends():
    with pytest.raises(ValueError, match="does not go with recipe: delayed"):
        Fp8(recipe="delayed", first_last_layers_bf16=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_fp8_without_a_gpu_says_what_brings_it():
    with pytest.raises(
        UserError, match="fp8 needs a GPU and Transformer Engine: there is no GPU; .* make install brings it"
    ):
        check_fp8_here(Fp8(), "student")


@pytest.mark.parametrize(("recompute", "granularity"), [("none", None), ("selective", "selective"), ("full", "full")])
def test_recompute_reaches_megatron(recompute, granularity):
    assert settings(recompute=recompute).recompute_granularity == granularity


def test_the_router_is_a_float32_softmax_over_the_chosen_without_balancing():
    config = settings(MIXTURE, "ep=2")
    assert (config.num_moe_experts, config.moe_router_topk, config.moe_router_dtype) == (8, 2, "fp32")
    assert config.moe_router_load_balancing_type == "none"
    assert config.moe_aux_loss_coeff == 0
    assert config.moe_token_dispatcher_type == "alltoall"
    assert not config.moe_router_pre_softmax


def test_experts_without_normalised_top_k_take_the_softmax_first():
    assert settings(MIXTURE | {"norm_topk_prob": False}).moe_router_pre_softmax


@pytest.mark.parametrize(("hf", "expected"), [(DENSE, False), (MIXTURE, True)])
def test_experts_under_tensor_parallelism_are_sequence_parallel(hf, expected):
    assert settings(hf, "tp=2").sequence_parallel == expected


def test_sequence_parallel_at_tp_1_has_no_effect():
    assert not settings(layout="sequence_parallel=true").sequence_parallel


def test_an_expert_count_that_ep_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"8 experts cannot be cut over ep = 3 \(8 % 3 = 2\)"):
        Architecture.from_dict(MIXTURE, "x").check_layout(Layout(ep=3), "x")


FUSED = {"apply_rope_fusion", "gradient_accumulation_fusion", "moe_grouped_gemm", "moe_permute_fusion"}


@pytest.mark.parametrize(
    ("gpu", "te", "dtype", "layers", "on"),
    [
        (True, True, "bfloat16", "transformer_engine", FUSED | {"bias_activation_fusion"}),
        (True, True, "float32", "local", {"bias_activation_fusion"}),  # in float32 they would multiply in TF32
        (True, False, "bfloat16", "local", {"bias_activation_fusion"}),
        (False, False, "bfloat16", "local", set()),
    ],
)
def test_what_a_gpu_and_transformer_engine_turn_on(monkeypatch, gpu, te, dtype, layers, on):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(settings_room, "have_te", lambda: te)
    chosen = settings_room._of_this_machine(dtype, experts=True)
    assert chosen.pop("transformer_impl") == layers
    assert chosen.pop("use_cpu_initialization") is not gpu
    assert {name for name, value in chosen.items() if value} == on
