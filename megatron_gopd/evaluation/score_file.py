"""`megatron-gopd score`: log-probs and entropies of the responses in a file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from megatron_gopd.config import Layout
from megatron_gopd.data import load_tokenizer
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.options import check_options
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.frozen import frozen_model
from megatron_gopd.policies import scoring
from megatron_gopd.ranks import is_first
from megatron_gopd.runs import write_text


def score_file(
    model: Path, source: Path, target: Path, *, layout: Layout, dtype: str, temperature: float, max_tokens: int
) -> None:
    """Write {"id", "logprobs": [...], "entropy": [...]} for every row of `source`, in order.

    A row holds "prompt_tokens" and "response_tokens", or "prompt" and "response" as text: the prompt is tokenized as
    it stands (no chat template) with the tokenizer's own special tokens, the response without any.
    Collective over all ranks; `target` is replaced atomically.

    Raises:
        UserError: a row, the model or the layout is unfit; a log-prob that is not finite.
    """
    check_options(dtype, temperature, target)
    ids, rows, places = _read(source, model)
    _check_tokens(rows, places, Architecture.read(model).vocab_size)
    scorer = frozen_model(model, layout, dtype)  # None: layout.ranks leaves this rank out
    logprobs, entropy = scoring.score(scorer, rows, temperature=temperature, max_tokens=max_tokens)
    for values, place in zip(logprobs, places, strict=True):
        if not np.isfinite(values).all():
            raise UserError(f"{place}: the model gives a log-prob of {values[~np.isfinite(values)][0]}; try float32")
    if is_first():
        lines = (
            json.dumps({"id": row_id, "logprobs": lp.tolist(), "entropy": en.tolist()}) + "\n"
            for row_id, lp, en in zip(ids, logprobs, entropy, strict=True)
        )
        write_text(target, "".join(lines))


def _read(source: Path, model: Path) -> tuple[list, list[Row], list[str]]:
    """Ids, rows and FILE:LINE of each."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {source}: {getattr(error, 'strerror', None) or error}") from None
    if not text:
        raise UserError(f"{source} is empty; write one JSON object a line")
    tokenizer = cache(lambda: load_tokenizer(model))
    ids, rows, places = [], [], []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):  # splitlines() cuts at U+2028 too
        place = f"{source}:{number}"
        try:
            columns = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON: {error}") from None
        if not isinstance(columns, dict):
            raise UserError(f"{place}: a JSON object is expected")
        ids.append(columns.get("id", number))
        rows.append(_row(columns, place, tokenizer))
        places.append(place)
    return ids, rows, places


def _row(columns: dict, place: str, tokenizer) -> Row:
    if "prompt_tokens" in columns and "response_tokens" in columns:
        prompt, response = columns["prompt_tokens"], columns["response_tokens"]
    elif isinstance(columns.get("prompt"), str) and isinstance(columns.get("response"), str):
        prompt = tokenizer()(columns["prompt"])["input_ids"]
        response = tokenizer()(columns["response"], add_special_tokens=False)["input_ids"]
    else:
        raise UserError(f"{place}: needs prompt_tokens and response_tokens, or prompt and response as text")
    for name, tokens in (("prompt", prompt), ("response", response)):
        if not isinstance(tokens, list) or not tokens or not all(type(token) is int for token in tokens):
            raise UserError(f"{place}: the {name} needs at least one token, as a list of integers")
    return Row(prompt, response)


def _check_tokens(rows: list[Row], places: list[str], vocab_size: int) -> None:
    for row, place in zip(rows, places, strict=True):
        for token in (*row.prompt_tokens, *row.response_tokens):
            if not 0 <= token < vocab_size:
                raise UserError(f"{place}: token id {token} is outside the model's vocabulary of {vocab_size}")
