"""A Hugging Face config.json: read, and each value asked for by key and of the kind it must be."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_gopd.errors import UserError


def read_config(folder: str | Path) -> dict:
    """config.json of a Hugging Face directory. Raises UserError."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder} is no Hugging Face model directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: a JSON object is expected, not a {type(config).__name__}")
    return config


class Fields:
    """The values of a config.json; null is as good as absent. Each method raises UserError, naming `where` and the key.

    A `default` of None: the key must be there.
    """

    def __init__(self, config: dict, where: str):
        self._config, self._where = config, where

    def count(self, key: str, default: int | None = None) -> int:
        return self._get(key, default, "a whole number above 0", lambda value: type(value) is int and value > 0)

    def number(self, key: str, default: float | None = None) -> float:
        return float(
            self._get(key, default, "a number above 0", lambda value: type(value) in (int, float) and value > 0)
        )

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
            raise UserError(f"{self._where}: {key} is {value!r}; {expected} is expected")
        return value
