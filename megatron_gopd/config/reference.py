"""Every key of a configuration in words, from the schema: docs/configuration.md. `make docs` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from megatron_gopd.config.algorithms import ALGORITHMS
from megatron_gopd.config.load import _sections_in
from megatron_gopd.config.own_code import OneOf
from megatron_gopd.config.schema import Config

HEAD = """# Configuration

    megatron-gopd train my_run.yaml optimizer.lr=5e-6        # a YAML file; keys on the command line go first

Every key, with its type, its default and what it means. `megatron-gopd train my_run.yaml --dry-run` prints them all,
with the values that a run would have. A key that is not here is refused, with the nearest one that is. Paths start in
the folder in which the command is started; ~ is your home. This page is made from the schema: `make docs`.
"""
OF_ALGORITHM = {
    "gopd": "`type: gopd`, the default",
    "gopd exact": "`type: gopd`, `gradient: exact`",
    "gopd top_k": "`type: gopd`, `gradient: top_k`",
    "grpo": "`type: grpo`",
    "sft": "`type: sft`",
    "of one's own": "`type: FILE.py:FUNCTION`",
}
BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "at least {} long"}
WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", NoneType: "null", dict: "mapping"}


def reference() -> str:
    """The page: a table for each section, in the order of the schema."""
    shown: dict[type[BaseModel], str] = {}
    parts = [HEAD, _table([_row(name, field, shown) for name, field in Config.model_fields.items()])]
    for name, field in Config.model_fields.items():
        if name == "algorithm":
            parts += [part for each, section in ALGORITHMS.items() for part in _of_algorithm(each, section, shown)]
            continue
        where = f"{name}.NAME" if get_origin(field.annotation) is dict else name
        parts += _inner(field, where, shown)
    return "\n".join(parts)


def _of_algorithm(name: str, section: type[BaseModel], shown: dict) -> Iterator[str]:
    yield f"## algorithm: {OF_ALGORITHM[name]}\n"
    yield _words(section)
    yield _table([_row(key, field, shown) for key, field in section.model_fields.items()])
    for key, field in section.model_fields.items():
        yield from _inner(field, f"algorithm.{key}", shown)


def _section(section: type[BaseModel], where: str, shown: dict[type[BaseModel], str]) -> Iterator[str]:
    """A section that stands at several places is told at the first."""
    if section in shown:
        return
    shown[section] = where
    yield f"## {where}\n"
    yield _words(section)
    yield _table([_row(name, field, shown) for name, field in section.model_fields.items()])
    for name, field in section.model_fields.items():
        yield from _inner(field, f"{where}.{field.alias or name}", shown)


def _inner(field: FieldInfo, where: str, shown: dict[type[BaseModel], str]) -> Iterator[str]:
    """The sections that a field may be; of several, each is told by its first key."""
    sections = _sections_in(field.annotation)
    for section in sections:
        kind = f": {{{next(iter(section.model_fields))}: ...}}" if len(sections) > 1 else ""
        yield from _section(section, where + kind, shown)


def _row(name: str, field: FieldInfo, shown: dict[type[BaseModel], str]) -> list[str]:
    sections = _sections_in(field.annotation)
    meaning = field.description or " / ".join(dict.fromkeys(_words(section).strip() for section in sections))
    told = dict.fromkeys(shown[section] for section in sections if section in shown)
    if told and len(sections) == 1:
        meaning += f" (keys: {', '.join(told)})"
    bounds = [BOUNDS[key].format(value) for item in field.metadata for key, value in _bounds(item)]
    kind = " or ".join(dict.fromkeys(_kinds(field.annotation, field.metadata)))
    return [f"`{field.alias or name}`", ", ".join([kind, *bounds]), _default(field), meaning]


def _bounds(item: object) -> Iterator[tuple[str, Any]]:
    return ((key, getattr(item, key)) for key in BOUNDS if getattr(item, key, None) is not None)


def _kinds(annotation: Any, metadata: list = ()) -> Iterator[str]:
    """The types that it may be of, in words."""
    named = next((item for item in metadata if isinstance(item, OneOf)), None)
    origin, parts = get_origin(annotation), get_args(annotation)
    if named:
        yield from (f"`{name}`" for name in (*named.names, f"FILE.py:{named.kind}"))
    elif origin is Annotated:
        yield from _kinds(parts[0], parts[1:])
    elif origin in (Union, UnionType):
        yield from (kind for part in parts for kind in _kinds(part))
    elif origin is Literal:
        yield from (f"`{json.dumps(value) if isinstance(value, bool) else value}`" for value in parts)
    elif origin is list:
        yield f"list of {' or '.join(_kinds(parts[0]))}"
    elif origin is tuple:
        yield f"[{', '.join(' or '.join(_kinds(part)) for part in parts)}]"
    elif origin is dict:
        yield f"mapping of names to {' or '.join(_kinds(parts[1]))}"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "section"
    else:
        yield WORDS[annotation]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its keys' defaults"
    plain = isinstance(value, str) and "\n" not in value
    return f"`{value if plain else json.dumps(value, ensure_ascii=False)}`"


def _words(section: type[BaseModel]) -> str:
    """The first paragraph of its docstring."""
    return " ".join((section.__doc__ or "").split("\n\n")[0].split()) + "\n"


def _table(rows: list[list[str]]) -> str:
    lines = [["key", "type", "default", "meaning"], ["---"] * 4, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines)
