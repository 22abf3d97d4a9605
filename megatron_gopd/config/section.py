"""What every section of the configuration is."""

from __future__ import annotations

from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A mapping that knows its keys."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _said_briefly(cls, tree: Any) -> Any:
        """A section or a list with nothing in it is as one left out. `true` for an optional section is the section with
        its defaults, `false` none."""
        if not isinstance(tree, dict):
            return tree
        fields = {field.alias or name: field.annotation for name, field in cls.model_fields.items()}
        said = {}
        for key, value in tree.items():
            kinds = set(_kinds(fields.get(key)))
            if value is None and NoneType not in kinds and _has_parts(fields.get(key)):
                continue
            if isinstance(value, bool) and NoneType in kinds and any(map(_is_section, kinds)):
                value = {} if value else None
            said[key] = value
        return said

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1."""
        given = value if isinstance(value, list | tuple) else [value]
        kinds = set(_kinds(cls.model_fields[info.field_name].annotation))
        if any(isinstance(each, bool) for each in given) and kinds & {int, float} and not kinds & {bool, True, False}:
            raise ValueError("a number is expected, not true or false")
        return value


def _kinds(annotation: Any) -> list:
    """The types, and values of Literals, that an annotation is made of."""
    parts = get_args(annotation)
    return [kind for part in parts for kind in _kinds(part)] if parts else [annotation]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _has_parts(annotation: Any) -> bool:
    """Whether it is of sections, or a mapping or list alone."""
    whole = get_origin(annotation) or annotation
    return whole in (dict, list) or any(map(_is_section, _kinds(annotation)))
