"""Hidden states of one response as they travel: a safetensors file, whose header names the model they are of."""

from __future__ import annotations

import json

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

NAME, MODEL = "hidden_states", "fingerprint"


def packed(states: Tensor, fingerprint: str) -> bytes:
    """states: [response, h]."""
    return safetensors.torch.save({NAME: states.contiguous()}, {MODEL: fingerprint})


def unpacked(said: bytes) -> tuple[Tensor, str]:
    """States and fingerprint. Raises ValueError: `said` is something else, or not all of it."""
    try:
        states = safetensors.torch.load(said)[NAME]
        header = json.loads(said[8 : 8 + int.from_bytes(said[:8], "little")])
        return states, header["__metadata__"][MODEL]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{len(said)} bytes that are no hidden states ({error})") from None
