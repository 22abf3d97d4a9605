"""What SGLang says of given tokens, and of those it holds most likely in their places."""

from __future__ import annotations

import base64
from typing import NamedTuple

import numpy as np

from megatron_gopd.servers import replies

NOBODY = -1  # in the place of an id that counts for nothing
MOST = 1.01  # that probabilities may sum to, with what rounding does to them


class Scored(NamedTuple):
    """Of a response, nats, at temperature 1."""

    logprobs: np.ndarray  # [response] float32
    top_ids: np.ndarray  # [response, k] int32
    top_logprobs: np.ndarray  # [response, k] float32


def top_logprobs(about: dict, tokens: int, top_k: int, vocab_size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs, [tokens, top_k] each, from an answer's meta_info whose first input token is not asked about.

    They come flat, in base64, from servers that know that form, and else as nested lists, which are slower by far.
    Source: sglang/srt/managers/tokenizer_manager.py, 0.5.23.

    Raises ValueError: says what is there in their place, or which id or number no token has. Log-probs that are not
    finite are returned.
    """
    if not top_k:
        return np.empty((tokens, 0), np.int32), np.empty((tokens, 0), np.float32)
    try:
        found = _flat(about) if "input_top_logprobs_shape" in about else _nested(about.get("input_top_logprobs") or [])
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"most likely tokens that cannot be read: {type(error).__name__}: {error}") from None
    if found[0].shape != (tokens, top_k):
        shape = " x ".join(map(str, found[0].shape))
        raise ValueError(f"{shape} most likely tokens for {tokens} tokens, of which algorithm.top_k asks {top_k} each")
    replies.known_ids(found[0], vocab_size)
    for place in np.flatnonzero((np.diff(np.sort(found[0])) == 0).any(axis=1))[:1]:
        raise ValueError(f"the same token twice among the most likely ones of place {place}")
    replies.possible(found[1])
    if (mass := np.exp(found[1]).sum(axis=1).max()) > MOST:
        raise ValueError(f"most likely tokens whose probabilities sum to {mass:.3g}, and are of no distribution")
    return found


def _flat(about: dict) -> tuple[np.ndarray, np.ndarray]:
    """The rows before the first that is whole are left out of arrays: here those of the token not asked about."""
    kinds = {"idx": "<i4", "val": "<f4"}
    raw = (base64.b64decode(about[f"input_top_logprobs_{kind}_flat_b64"]) for kind in kinds)
    shape = about["input_top_logprobs_shape"]
    ids, logprobs = (np.frombuffer(each, kind).reshape(shape) for each, kind in zip(raw, kinds.values(), strict=True))
    return ids, logprobs


def _nested(rows: list) -> tuple[np.ndarray, np.ndarray]:
    """Rows of [log-prob, id, text], the first null."""
    rows = [row or [] for row in rows[1:]]
    width = min(map(len, rows), default=0)
    logprobs = np.array([[entry[0] for entry in row[:width]] for row in rows], dtype=np.float32)
    ids = np.array([[entry[1] for entry in row[:width]] for row in rows], dtype=np.int32)
    return ids.reshape(len(rows), width), logprobs.reshape(len(rows), width)
