"""config.json: what is read, and what would silently be another model."""

from __future__ import annotations

import json

import pytest

from megatron_gopd.config import Layout
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from tests.tiny_models import EXPERTS, LLAMA3_ROPE


@pytest.fixture
def hf(models):
    """The config.json of a tiny Qwen3."""
    return json.loads((models["qwen3-tied"] / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-untied", {"qkv_bias": False, "qk_norm": False, "tied": False, "rope_factor": None, "head_dim": 8}),
        ("llama3-tied", {"rope_factor": 8.0, "rope_theta": 5e5, "tied": True, "max_positions": 16384}),
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
    assert (architecture.rope_theta, architecture.rope_factor) == (5e5, 8.0)


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
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "x: RoPE scaling {'rope_type': 'yarn'"),
        ({"rope_parameters": LLAMA3_ROPE | {"low_freq_factor": 2.0}}, "x: RoPE scaling {'rope_type': 'llama3'"),
        ({"hidden_size": None}, "x: the key 'hidden_size' is missing; is this a complete Hugging Face model?"),
        ({"vocab_size": "131"}, "x: vocab_size is '131'; a whole number above 0 is expected"),
        ({"num_hidden_layers": 4.0}, "x: num_hidden_layers is 4.0; a whole number above 0 is expected"),
        ({"num_attention_heads": 0}, "x: num_attention_heads is 0; a whole number above 0 is expected"),
        ({"intermediate_size": True}, "x: intermediate_size is True; a whole number above 0 is expected"),
        ({"rms_norm_eps": 0}, "x: rms_norm_eps is 0; a number above 0 is expected"),
        ({"tie_word_embeddings": "no"}, "x: tie_word_embeddings is 'no'; true or false is expected"),
        ({"rope_parameters": "default"}, "x: rope_parameters is 'default'; a JSON object is expected"),
        ({"layer_types": 4}, "x: layer_types is 4; a list is expected"),
        ({"num_key_value_heads": 3}, "x: num_attention_heads 8 is no multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "x: head_dim 15 is odd"),
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
