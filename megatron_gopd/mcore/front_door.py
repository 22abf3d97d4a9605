"""The one way into a model's weights: every verb that reads them comes through here, and hears the same sentences."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.hf_folder import HFFolder
from megatron_gopd.mcore.hf_shapes import EMBEDDING, HEAD, promised
from megatron_gopd.mcore.megatron_folder import MegatronFolder, is_megatron_folder

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")  # old checkpoints carry what follows from config.json
SHOWN = 5


def open_weights(folder: str | Path) -> HFFolder | MegatronFolder:
    """The weights in `folder`, a Hugging Face directory or a Megatron checkpoint, before the first value is used.

    What config.json alone tells is checked by Architecture.read, tokenizers by data.load_tokenizer.

    Raises:
        UserError: config.json, files, names, sizes or dtypes are not those of one model.
    """
    return MegatronFolder(folder) if is_megatron_folder(folder) else open_hf_weights(folder)


def open_hf_weights(folder: str | Path) -> HFFolder:
    """open_weights of what must be a Hugging Face directory."""
    architecture = Architecture.read(folder)
    weights = HFFolder(folder)
    _refuse_dtypes(weights)
    _compare_with_config(weights, architecture)
    if architecture.tied and HEAD in weights.stored:
        _compare_tied_head(weights)
    return weights


def same_bits(one: Tensor, other: Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def _compare_with_config(weights: HFFolder, architecture: Architecture) -> None:
    """Names and shapes in the files against those config.json promises, both ways."""
    left = {name: prod(stored.shape) for name, stored in weights.stored.items() if not _DERIVED.fullmatch(name)}
    if architecture.tied:
        left.pop(HEAD, None)
    wrong = []
    for name, shape in promised(architecture).items():
        holder = weights.holder(name)
        if holder is None:
            wrong.append(f"{name} is missing")
            continue
        left[holder] -= prod(shape)
        if weights.shape(name) != shape:
            wrong.append(f"{name} is {list(weights.shape(name))}, config.json promises {list(shape)}")
    if not wrong:
        wrong = [f"{name} holds {count} values config.json does not promise" for name, count in left.items() if count]
    if wrong:
        raise UserError(
            f"{weights.folder}: weights and config.json belong to different models ({len(wrong)} differences): "
            + "; ".join(wrong[:SHOWN])
        )


def _refuse_dtypes(weights: HFFolder) -> None:
    """Integers and 8-bit floats are codes: without their scales they are another model."""
    for name, stored in weights.stored.items():
        if stored.dtype not in DTYPES and not _DERIVED.fullmatch(name):
            raise UserError(
                f"{stored.path}: {name} is stored as {stored.dtype}; supported: {', '.join(DTYPES)}: "
                f"use the model before quantization, or cast it"
            )


def _compare_tied_head(weights: HFFolder) -> None:
    """Some tied models store their head beside the embedding; only where it is the same may it be left out."""
    if not same_bits(weights.tensor(HEAD), weights.tensor(EMBEDDING)):
        raise UserError(
            f"{weights.folder}: config.json ties the embeddings, but {HEAD} is not {EMBEDDING}; "
            f"set tie_word_embeddings to false, or remove one of them"
        )
