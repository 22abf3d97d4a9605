"""docs/configuration.md is what the schema says."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import get_args

import pytest
from pydantic import BaseModel

from megatron_gopd.config.algorithms import ALGORITHMS
from megatron_gopd.config.load import _sections_in
from megatron_gopd.config.reference import reference
from megatron_gopd.config.schema import Config

PAGE = Path(__file__).parents[2] / "docs/configuration.md"


def sections() -> dict[str, type[BaseModel]]:
    """{name of its class: section} of all there are."""
    found, left = {}, [Config, *ALGORITHMS.values()]
    while left:
        section = left.pop()
        found[section.__name__] = section
        inner = [each for field in section.model_fields.values() for each in _sections_in(field.annotation)]
        left += [each for each in inner if each.__name__ not in found]
    return found


def test_the_page_is_what_is_generated():
    assert PAGE.read_text() == reference(), "run: make docs"


@pytest.mark.parametrize("name", sections())
def test_every_key_has_a_meaning(name):
    section = sections()[name]
    for key, field in section.model_fields.items():
        inner = _sections_in(field.annotation)
        assert field.description or (inner and all("__doc__" in vars(each) for each in inner)), f"{name}.{key}"


@pytest.mark.parametrize("name", sections())
def test_what_may_be_null_says_what_that_means(name):
    for key, field in sections()[name].model_fields.items():
        if NoneType in get_args(field.annotation):
            assert "null: " in (field.description or ""), f"{name}.{key}"


def test_every_key_is_on_the_page():
    page = reference()
    for section in sections().values():
        for key, field in section.model_fields.items():
            assert f"| `{field.alias or key}` |" in page
