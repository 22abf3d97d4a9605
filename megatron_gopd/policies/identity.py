"""What tells a model from another, here and behind a server."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_gopd.data import load_tokenizer
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies.target_heads import lm_head


def describe(model: str | Path) -> dict:
    """Its architecture, and a digest of the tokenizer's map."""
    vocabulary = sorted(load_tokenizer(model).get_vocab().items())
    return {
        "model_path": str(model),
        "architecture": asdict(Architecture.read(model)),
        "tokenizer": hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest(),
    }


def fingerprint(model: str | Path, dtype: str) -> str:
    """Of what hidden states belong to: the description, the dtype they are computed in, every value of the LM head.

    Raises UserError: a Hugging Face directory without that tensor.
    """
    digest = hashlib.sha256()
    about = {key: value for key, value in describe(model).items() if key != "model_path"} | {"dtype": dtype}
    digest.update(json.dumps(about, sort_keys=True).encode())
    head = lm_head(model).to(getattr(torch, dtype)).contiguous()
    digest.update(head.view(torch.uint8).numpy())
    return digest.hexdigest()
