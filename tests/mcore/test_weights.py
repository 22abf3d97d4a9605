"""Weights in and out: every family, every layout, bit by bit."""

from __future__ import annotations

import pytest

from tests.mcore.export_on_ranks import export_all
from tests.ranks import on_ranks
from tests.tiny_models import NAMES

LAYOUTS = ["tp=2", "pp=2"]  # data and sequence parallelism cut no weights


@pytest.fixture(scope="module")
def on_two_ranks(models):
    return on_ranks(2, export_all, folders=models, layouts=LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_export_what_they_loaded(on_two_ranks, name, layout):
    assert on_two_ranks[name, layout] == ""


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_exports_what_it_loaded(models, alone, name):
    assert export_all({name: models[name]}, [""]) == {(name, ""): ""}


def test_a_bf16_model_exports_the_rounded_weights(models, alone):
    assert export_all({"qwen3-tied": models["qwen3-tied"]}, [""], "bfloat16") == {("qwen3-tied", ""): ""}
