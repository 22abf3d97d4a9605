"""A Hugging Face config.json: read, and each value asked for by key and of the kind it must be."""

from __future__ import annotations

import functools
import json
from dataclasses import fields
from pathlib import Path

from megatron_gopd.config.hub import how_to_download
from megatron_gopd.errors import UserError

MOST = 1e30  # of a number that is no count; theta goes to 1e10
# beside the fields of transformers' class, these are read, or refused by name, for every architecture
READ = frozenset(
    "model_type head_dim rope_theta rope_scaling partial_rotary_factor num_local_experts mlp_bias attention_bias "
    "layer_types use_sliding_window mlp_only_layers decoder_sparse_step per_layer_config".split()
)
# what transformers and others write into a config.json and no forward pass reads
HARMLESS = frozenset(
    "torch_dtype name_or_path _name_or_path _commit_hash num_labels max_window_layers pretraining_tp "
    "output_attentions attn_implementation _attn_implementation _attn_implementation_autoset "
    "_attn_implementation_internal experts_implementation _experts_implementation _experts_implementation_internal "
    "use_flash_attn use_bfloat16 gradient_checkpointing initializer_factor unsloth_fixed unsloth_version "
    "is_llama_config transformers.js_config max_sequence_length model_max_length router_aux_loss_coef "
    "output_router_logits tokenizer_class sep_token_id decoder_start_token_id prefix task_specific_params "
    "finetuning_task torchscript tie_encoder_decoder".split()
)


def read_config(folder: str | Path) -> dict:
    """config.json of a Hugging Face directory. Raises UserError."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        missing = "it has no config.json" if path.parent.is_dir() else "there is no such folder"
        told = f"{folder} is no Hugging Face model directory: {missing}"
        raise UserError(told + ("" if path.parent.is_dir() else how_to_download(folder, "model"))) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: a JSON object is expected, not a {type(config).__name__}")
    return config


def says_nothing(value: object) -> bool:
    """null, false and what is empty ask for nothing, whatever the key; 0 may well mean something."""
    return value is None or value is False or value in ({}, [], "")


@functools.cache
def config_class(model_type: str) -> type:
    """transformers' configuration of a supported architecture: which keys there are, and what they default to."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]


@functools.cache
def _known(model_type: str) -> frozenset[str]:
    from transformers import GenerationConfig

    own = {field.name for field in fields(config_class(model_type))}
    return frozenset(own | READ | HARMLESS | GenerationConfig._get_default_generation_params().keys())


def refuse_unknown_keys(config: dict, where: str) -> None:
    """What may ask for another model than the architecture's. Raises UserError naming the first such key."""
    model_type = config["model_type"]
    if config.get("quantization_config"):
        raise UserError(
            f"{where}: quantization_config: quantized weights are not supported; "
            f"use the model before quantization, or dequantize it to bfloat16 and remove the key"
        )
    for key, value in config.items():
        if key not in _known(model_type) and not says_nothing(value):
            raise UserError(
                f"{where}: {key} = {json.dumps(value)[:80]} is no key of {model_type} models in transformers: what it "
                f"asks for would not be computed; if the model does without it, remove {key!r} from config.json"
            )


def _short(value: object) -> str:
    """Of a number of thousands of digits, the first: Python writes no longer ones."""
    try:
        return f"{value!r:.80}"
    except ValueError:
        return f"a number of {value.bit_length()} bits"


class Fields:
    """The values of a config.json; null is as good as absent. Each method raises UserError, naming `where` and the key.

    A `default` of None: the key must be there.
    """

    def __init__(self, config: dict, where: str):
        self._config, self._where = config, where

    def count(self, key: str, default: int | None = None, most: int = 2**24) -> int:
        """`most`: above what any model has; nobody waits for a model of more."""
        value = self._get(key, default, "a whole number above 0", lambda value: type(value) is int and value > 0)
        return self._bounded(key, value, most)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default, "a number above 0", lambda value: type(value) in (int, float) and value > 0)
        return float(self._bounded(key, value, MOST))

    def _bounded(self, key: str, value: float, most: float) -> float:
        if value > most:
            raise UserError(f"{self._where}: {key} is {_short(value)}, and no model has more than {most:g}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return self._get(key, default, "true or false", lambda value: isinstance(value, bool))

    def mapping(self, key: str) -> dict:
        return self._get(key, {}, "a JSON object", lambda value: isinstance(value, dict))

    def names(self, key: str) -> list:
        return self._get(key, [], "a list", lambda value: isinstance(value, list))

    def _get(self, key: str, default, expected: str, fits):
        value = self._config.get(key)
        if value is None:
            if default is None:
                raise UserError(f"{self._where}: the key {key!r} is missing; is this a complete Hugging Face model?")
            return default
        if not fits(value):
            raise UserError(f"{self._where}: {key} is {_short(value)}; {expected} is expected")
        return value
