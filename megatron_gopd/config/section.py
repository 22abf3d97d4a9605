"""What every section of the configuration is."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """A mapping that knows its keys."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False)

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
