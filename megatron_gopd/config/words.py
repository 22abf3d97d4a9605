"""What pydantic says of a value of the wrong kind, in the words of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# the beginning of a type of error -> what stands in the place of its message
WORDS = {
    "bool": "true or false is expected",
    "int": "a whole number is expected",
    "float": "a number is expected",
    "string": "text is expected",
    "list": "a list is expected: [ONE, OTHER]",
    "tuple": "a list is expected: [ONE, OTHER]",
    "dict": "a mapping is expected: {NAME: VALUE}",
    "model": "a mapping is expected: {KEY: VALUE}",
}
SHOWN = 80  # characters of a value


def in_words(problem: Mapping, keys: Sequence[str], named_keys: Sequence[str]) -> str:
    """The message of one of a ValidationError's errors(), with the value that was given, where it is short.

    `keys`: that may stand there; `named_keys`: below names of the user's own, as under `teachers`.
    """
    kind, _, what = problem["type"].partition("_")
    message, given = problem["msg"].removeprefix("Value error, "), problem["input"]
    if what in ("type", "parsing", "from_float", "attributes_type") and kind in WORDS:
        message = WORDS[kind]
        if kind == "model" and keys:
            message = f"keys are expected here: {', '.join(keys)}"
        if kind == "dict" and named_keys:
            message = f"names are expected here, each with keys below it: {{NAME: {{{named_keys[0]}: ...}}}}"
        if kind == "string" and isinstance(given, int | float) and not isinstance(given, bool):
            message += "; put it in quotes"
    return message + _given(given)


def _given(value: object) -> str:
    """As the file writes it; of a mapping nothing, its keys are in sight."""
    if isinstance(value, bool) or value is None:
        return f" (given: {'null' if value is None else str(value).lower()})"
    if not isinstance(value, str | int | float | list):
        return ""
    written = repr(value)
    return f" (given: {written if len(written) <= SHOWN else written[:SHOWN] + ' ...'})"
