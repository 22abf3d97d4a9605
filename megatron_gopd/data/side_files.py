"""What a model folder says of responses beside its tokenizer: JSON files, and the ids that end one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_gopd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_ids(folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a response: generation_config.json's eos_token_id, else config.json's; and the tokenizer's.

    Raises UserError when nothing names one, or one is no id of the tokenizer.
    """
    known, own = set(tokenizer.get_vocab().values()), tokenizer.eos_token_id
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        path = Path(folder) / name
        named = read_json(path).get("eos_token_id")
        ids = named if isinstance(named, list) else [] if named is None else [named]
        if not all(type(i) is int for i in ids):
            raise UserError(f"{path}: eos_token_id {named!r} is neither an id nor a list of ids")
        if unknown := [i for i in ids if i not in known]:
            raise UserError(
                f"{path}: eos_token_id {unknown[0]} is no id of the tokenizer, which has {len(known)}, so it would end "
                f"nothing; name the id that ends a turn"
            )
        found = found or ids
    stops = list(dict.fromkeys([*found, *([own] if own is not None else [])]))
    if not stops:
        raise UserError(f"{folder}: nothing ends a response; name eos_token_id in generation_config.json")
    return stops


def read_json(path: Path) -> dict:
    """The object in a JSON file; {} where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is expected here, not a {type(content).__name__}")
    return content
