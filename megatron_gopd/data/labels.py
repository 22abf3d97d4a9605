"""What a row's answer must be, as text: numbers as plain decimals, NaN as none, several gold answers as such."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal

LABEL_COLUMNS = ("label", "answer", "ground_truth")
ANY_OF = ("golden_answers", "target")  # of NQ and search data: each of the list is right


@dataclass(frozen=True)
class Label:
    """`text`: the answer, JSON where it is a list or a mapping. `golds`: of several answers each by itself; `any_of`:
    the data's convention says that each is right."""

    text: str | None = None
    golds: tuple[str, ...] = ()
    any_of: bool = False


def label_of(*values: object) -> Label:
    """The first value that is set."""
    value = next((value for value in values if not is_missing(value)), None)
    convention = next((key for key in ANY_OF if isinstance(value, dict) and not is_missing(value.get(key))), None)
    given = value[convention] if convention else value
    if isinstance(given, list):
        golds = tuple(as_text(each) for each in given if not is_missing(each))
        if len(golds) == 1:
            return Label(golds[0])
        if golds and not any(isinstance(each, list | dict) for each in given):
            return Label(as_text(given), golds, any_of=convention is not None)
    return Label(as_text(given))


def is_missing(value: object) -> bool:
    """Nothing, NaN (how a table of floats leaves a cell out), or blank text, as files of math and code often have."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def as_text(value: object) -> str | None:
    """Lists and mappings (test cases) as JSON; 1e-05, which a grader reads with Euler's e, as 0.00001."""
    if value is None:
        return None
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, float | Decimal) and Decimal(str(value)).is_finite():
        return format(Decimal(str(value)), "f")
    return str(value)
