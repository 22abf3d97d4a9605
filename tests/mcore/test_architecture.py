"""config.json: what is read, and what would silently be another model."""

from __future__ import annotations

import json

import pytest

from megatron_gopd.config import Layout
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.rope import RopeScaling
from tests.tiny_models import EXPERTS, LLAMA3_ROPE

LLAMA3 = RopeScaling(**{key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"})
MOE = EXPERTS.keys() - {"head_dim"}
POSITIONS = {"original_max_position_embeddings": 32768}  # of the whole model


@pytest.fixture
def hf(models):
    """The config.json of a tiny Qwen3."""
    return json.loads((models["qwen3-tied"] / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-untied", {"qkv_bias": False, "qk_norm": False, "tied": False, "rope_scaling": None, "head_dim": 8}),
        ("llama3-tied", {"rope_scaling": LLAMA3, "rope_theta": 5e5, "tied": True, "max_positions": 16384}),
        ("qwen2-tied", {"qkv_bias": True, "qk_norm": False, "heads": 8, "groups": 4, "layers": 4}),
        ("qwen3-untied", {"qkv_bias": False, "qk_norm": True, "head_dim": 16, "ffn_size": 96, "vocab_size": 131}),
    ],
)
def test_what_transformers_saved_is_read(models, name, expected):
    architecture = Architecture.read(models[name])
    assert {key: getattr(architecture, key) for key in expected} == expected


def test_the_older_spelling_of_rope_is_read(hf):
    del hf["rope_parameters"]
    hf |= {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE | {"type": "llama3"}}
    architecture = Architecture.from_dict(hf, "x")
    assert (architecture.rope_theta, architecture.rope_scaling) == (5e5, LLAMA3)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("keys", "theta", "scaling"),
    [
        ({}, 1e4, None),
        ({"rope_theta": 1e6}, 1e6, None),
        ({"rope_theta": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
        ({"rope_scaling": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
        ({"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 1e6}, 1e6, RopeScaling("linear", factor=2)),
        ({"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e4}}, 1e4, RopeScaling(**YARN)),
        ({"rope_scaling": LLAMA3_ROPE}, 5e5, LLAMA3),
        ({"rope_scaling": None, "rope_parameters": YARN | {"rope_theta": 7.0}}, 7.0, RopeScaling(**YARN)),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 1e4, RopeScaling(**YARN | POSITIONS)),
    ],
)
def test_rope_is_read_by_the_precedence_of_transformers(hf, keys, theta, scaling):
    del hf["rope_parameters"]
    architecture = Architecture.from_dict(hf | keys, "x")
    assert (architecture.rope_theta, architecture.rope_scaling) == (theta, scaling)


def test_the_context_of_yarn_is_its_factor_times_the_original(hf):
    scaled = hf | {"rope_parameters": YARN | {"original_max_position_embeddings": 32768}}
    assert Architecture.from_dict(scaled, "x").context == 131072


@pytest.mark.parametrize(
    ("model_type", "groups", "head_dim"), [("llama", 8, 8), ("qwen2", 32, 8), ("qwen3", 32, 128), ("qwen3_moe", 4, 8)]
)
def test_a_key_that_is_absent_has_the_default_of_transformers(hf, model_type, groups, head_dim):
    del hf["num_key_value_heads"], hf["head_dim"]
    hf |= {"model_type": model_type, **EXPERTS, "num_attention_heads": 32, "hidden_size": 256}
    del hf["head_dim"]
    if model_type == "llama":
        hf["num_attention_heads"], hf["hidden_size"] = 8, 64
    architecture = Architecture.from_dict(
        {k: v for k, v in hf.items() if model_type == "qwen3_moe" or k not in MOE}, "x"
    )
    assert (architecture.groups, architecture.head_dim) == (groups, head_dim)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("residual_multiplier", 0.22),
        ("query_pre_attn_scalar", 256),
        ("logit_scale", 0),
        ("original_max_position_embeddings", 4096),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Own"}),
        ("num_nextn_predict_layers", 1),
    ],
)
def test_a_key_that_nothing_computes_is_refused(hf, key, value):
    with pytest.raises(UserError) as caught:
        Architecture.from_dict(hf | {key: value}, "x")
    message = str(caught.value)
    assert message.startswith(f"x: {key} = {json.dumps(value)} is no key of qwen3 models in transformers")
    assert message.endswith(f"if the model does without it, remove {key!r} from config.json")


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_a_key_that_says_nothing_is_harmless(hf, value):
    Architecture.from_dict(hf | {"final_logit_softcapping": value}, "x")


@pytest.mark.parametrize("quantization", [{"quant_method": "fp8"}, {"bits": 4}])
def test_quantized_weights_are_refused(hf, quantization):
    with pytest.raises(UserError, match="x: quantization_config: quantized weights are not supported; use the model"):
        Architecture.from_dict(hf | {"quantization_config": quantization}, "x")


def test_a_theta_that_transformers_would_lose_is_refused(hf):
    hf |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": YARN}
    with pytest.raises(UserError, match="x: rope_scaling stands in place of rope_parameters, so rope_theta 1000000.0"):
        Architecture.from_dict(hf, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "x: model_type 'gpt2' is not supported; supported: llama, qwen2, qwen3"),
        ({"model_type": None}, "x: model_type None is not supported"),
        ({"use_sliding_window": True}, "x: use_sliding_window = True is not supported for qwen3 models"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "x: layer_types = "),
        ({"attention_bias": True}, "x: attention_bias = True is not supported"),
        ({"mlp_bias": True}, "x: mlp_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "x: hidden_act = 'gelu' is not supported"),
        ({"partial_rotary_factor": 0.5}, "x: partial_rotary_factor = 0.5 is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "x: RoPE scaling {'rope_type': 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "x: transformers cannot read the RoPE parameters: Missing"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "x: factor is '2'; a number above 0"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1, 2]}}, "x: RoPE scaling {'rope_type': 'd"),
        ({"per_layer_config": {"0": {"hidden_size": 2}}}, "x: per_layer_config = "),
        ({"hidden_size": None}, "x: the key 'hidden_size' is missing; is this a complete Hugging Face model?"),
        ({"vocab_size": "131"}, "x: vocab_size is '131'; a whole number above 0 is expected"),
        ({"num_hidden_layers": 4.0}, "x: num_hidden_layers is 4.0; a whole number above 0 is expected"),
        ({"num_attention_heads": 0}, "x: num_attention_heads is 0; a whole number above 0 is expected"),
        ({"intermediate_size": True}, "x: intermediate_size is True; a whole number above 0 is expected"),
        ({"rms_norm_eps": 0}, "x: rms_norm_eps is 0; a number above 0 is expected"),
        ({"num_hidden_layers": 10**9}, "x: num_hidden_layers is 1000000000, and no model has more than 2048"),
        ({"hidden_size": 10**5000}, "x: hidden_size is a number of 16610 bits, and no model has more than"),
        ({"vocab_size": 2**40}, "x: vocab_size is 1099511627776, and no model has more than"),
        ({"max_position_embeddings": 2**62}, "x: max_position_embeddings is 4611686018427387904, and no model"),
        ({"rms_norm_eps": float("inf")}, "x: rms_norm_eps is inf, and no model has more than 1e+30"),
        ({"rms_norm_eps": float("nan")}, "x: rms_norm_eps is nan; a number above 0 is expected"),
        ({"model_type": "qwen3_moe", **EXPERTS, "num_experts": 10**9}, "x: num_experts is 1000000000, and no model"),
        ({"tie_word_embeddings": "no"}, "x: tie_word_embeddings is 'no'; true or false is expected"),
        ({"rope_parameters": "default"}, "x: rope_parameters is 'default'; a JSON object is expected"),
        ({"layer_types": 4}, "x: layer_types is 4; a list is expected"),
        ({"num_key_value_heads": 3}, "x: num_attention_heads 8 is no multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "x: head_dim 15 is odd"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "x: RoPE scaling {'full_attention'"),
        (
            {"model_type": "qwen3_moe", **EXPERTS, "num_local_experts": 9},
            "x: num_local_experts and num_experts differ: 8, 9",
        ),
        ({"model_type": "qwen3_moe", **EXPERTS, "num_experts": 1}, "x: num_experts_per_tok 2 of 1 experts"),
    ],
)
def test_another_model_is_refused(hf, change, message):
    with pytest.raises(UserError) as caught:
        Architecture.from_dict(hf | change, "x")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("key", ["num_attention_heads", "hidden_size", "vocab_size", "intermediate_size"])
def test_a_missing_key_is_named(hf, key):
    del hf[key]
    with pytest.raises(UserError, match=f"x: the key '{key}' is missing"):
        Architecture.from_dict(hf, "x")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp=3), "x: 8 attention heads cannot be cut over tp = 3 (8 % 3 = 2); tp may be 1, 2, 4, 8"),
        (Layout(tp=8), "x: 4 key-value heads cannot be cut over tp = 8 (4 % 8 = 4)"),
        (Layout(pp=3), "x: 4 layers cannot be cut over pp = 3"),
        (Layout(ep=2), "x: layout.ep = 2, etp = 1: a dense model has no experts; omit them"),
        (Layout(etp=2), "x: layout.ep = 1, etp = 2: a dense model has no experts; omit them"),
    ],
)
def test_a_layout_it_cannot_be_cut_into_is_refused(hf, layout, message):
    with pytest.raises(UserError) as caught:
        Architecture.from_dict(hf, "x").check_layout(layout, "x")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("tp", "rows"), [(1, 131), (2, 132), (4, 132), (8, 136)])
def test_the_vocabulary_is_padded_until_tp_divides_it(hf, tp, rows):
    assert Architecture.from_dict(hf, "x").padded_vocab(tp) == rows
