"""What a program is tested with: the published forms, read into one of three kinds, and how answers are compared."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from megatron_gopd.errors import UserError

FORMS = (
    '{"inputs": [...], "outputs": [...]}, with "fn_name" for a function, {"test": CODE, "entry_point": NAME}, '
    'or ["assert ...", ...]'
)


@dataclass(frozen=True)
class Stdio:
    """(input, expected output) of whole programs; `setup` is code that runs before the answer's."""

    cases: tuple[tuple[str, str], ...]
    setup: str = ""


@dataclass(frozen=True)
class Calls:
    """(arguments, expected value) of the function of that name, or of that method of a class Solution."""

    function: str
    cases: tuple[tuple[tuple, object], ...]
    setup: str = ""


@dataclass(frozen=True)
class Assertions:
    """Python code that fails by raising; it can use what the answer defines (see `entry.names_for`)."""

    blocks: tuple[str, ...]
    setup: str = ""
    entry: str = ""  # the name of what is tested, where the tests say it


Tests = Stdio | Calls | Assertions


class ListOfOne(list):
    """An expected value of APPS, which writes every value as a list of one: the list, or what is in it."""


def parse_tests(text: str) -> Tests:
    """Read the JSON of one row's tests. Raises UserError saying what of it is wrong."""
    try:
        with _any_integer():
            tests = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"tests are not JSON: {error}") from None
    if isinstance(tests, list) and tests and all(isinstance(each, str) for each in tests):
        return Assertions(tuple(tests))
    if not isinstance(tests, dict):
        raise UserError(f"tests: write {FORMS}")
    setup = _text(tests.get("setup", ""), "setup")
    if "test" in tests:
        entry = _text(tests.get("entry_point"), "entry_point")
        return Assertions((f"{_text(tests['test'], 'test')}\ncheck({entry})",), setup, entry)
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not 0 < len(inputs) == len(outputs):
        raise UserError(f"tests: as many outputs as inputs are expected, and at least one; write {FORMS}")
    pairs = zip(inputs, outputs, strict=True)
    if tests.get("fn_name"):
        listed = all(isinstance(each, list) for each in inputs) and all(map(_is_list_of_one, outputs))
        cases = tuple(_call(given, ListOfOne(expected) if listed else expected) for given, expected in pairs)
        return Calls(_text(tests["fn_name"], "fn_name"), cases, setup)
    return Stdio(tuple((_lines(given, "inputs"), _lines(expected, "outputs")) for given, expected in pairs), setup)


def same_output(output: str, expected: str) -> bool:
    """Line by line, without space at the ends; numbers by value, those written with a point within 1e-6."""
    ours, theirs = (text.strip().split("\n") for text in (output, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def same_value(value: object, expected: object) -> bool:
    """Equal once tuples, and whatever else is iterated over, are lists, for which JSON has nothing else: sets in
    ascending order. Floats within 1e-6, but not in the place of integers.
    """
    value = _as_json(value)
    if isinstance(expected, ListOfOne):
        return _equal(value, list(expected)) or _equal(value, expected[0])
    return _equal(value, expected)


@contextmanager
def _any_integer() -> Iterator[None]:
    """Python refuses to read integers of more than 4300 digits; contests have them."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def _is_list_of_one(output: object) -> bool:
    return isinstance(output, list) and len(output) == 1


def _call(given: object, expected: object) -> tuple[tuple, object]:
    """A list of arguments, or (LiveCodeBench) text with one argument a line, all in JSON."""
    if isinstance(given, list):
        return tuple(given), expected
    try:
        arguments = tuple(json.loads(line) for line in _text(given, "inputs").split("\n"))
        return arguments, json.loads(_text(expected, "outputs"))
    except ValueError as error:
        raise UserError(f"tests: an input or output of fn_name is not JSON: {error}") from None


def _lines(value: object, name: str) -> str:
    if isinstance(value, list):
        return "\n".join(str(each) for each in value)
    return str(value) if isinstance(value, int | float) else _text(value, name)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"tests: {name!r} holds {type(value).__name__}; text is expected")
    return value


def _same_line(ours: str, theirs: str) -> bool:
    ours, theirs = ours.split(), theirs.split()
    return len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    try:
        if Decimal(ours) == Decimal(theirs):
            return True
        close = math.isclose(float(ours), float(theirs), rel_tol=1e-6, abs_tol=1e-6)
    except (InvalidOperation, ValueError, OverflowError):
        return False
    return close and not theirs.lstrip("+-").isdigit()


_SINGLE = (int, float, str, bytes, bytearray)


def _as_json(value: object) -> object:
    if value is None or isinstance(value, _SINGLE):
        return value
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if not isinstance(value, Iterable):
        return value
    if isinstance(value, dict):
        return {str(key): _as_json(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        with suppress(TypeError):
            value = sorted(value)
    return [_as_json(each) for each in value]


def _equal(value: object, expected: object) -> bool:
    if isinstance(value, float) and isinstance(expected, float):
        return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6)
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(_equal, value, expected))
    return bool(value == expected)
