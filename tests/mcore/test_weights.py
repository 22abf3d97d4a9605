"""Weights in and out: every family, every layout, bit by bit."""

from __future__ import annotations

import pytest

from tests.mcore.export_on_ranks import export_all, export_parts, export_to_some, planned
from tests.ranks import on_ranks
from tests.tiny_models import MIXTURES, NAMES, save_tiny

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


def test_only_the_receivers_of_an_export_get_tensors(models, tmp_path):
    dense, experts = models["qwen3-untied"], save_tiny(tmp_path, MIXTURES[0])
    some = [[0], [0, 2], [3]]
    cases = [(dense, layout, receivers) for layout in ("tp=2,pp=2", "pp=2", "tp=2") for receivers in some]
    cases += [(experts, layout, receivers) for layout in ("ep=2,pp=2", "tp=2,ep=2,etp=2") for receivers in some]
    found = on_ranks(4, export_to_some, cases=cases)
    assert len(found) == len(cases) and not any(found.values()), found


def test_the_senders_parts_are_all_of_the_weights_once(models, tmp_path):
    dense, experts = models["qwen3-tied"], save_tiny(tmp_path, MIXTURES[0])
    expected = {
        (dense, ""): [0],
        (dense, "tp=2"): [0],
        (dense, "pp=2"): [0, 2],
        (dense, "tp=2,pp=2"): [0, 2],
        (experts, "ep=2"): [0, 1],
        (experts, "tp=2,ep=2"): [0, 1],  # rank 1 sends its experts, and is of the tensor-parallel group of rank 0
        (experts, "tp=2,ep=2,etp=2"): [0, 2],
        (experts, "ep=2,pp=2"): [0, 1, 2, 3],
    }
    found = on_ranks(4, export_parts, cases=list(expected))
    assert {key: ranks for key, (ranks, *_) in found.items()} == {
        (folder.name, layout): ranks for (folder, layout), ranks in expected.items()
    }
    assert not any(wrong for _, wrong, _ in found.values()), found
    for folder, layout in expected:  # and a plan knows who sends how much
        ranks, _, sizes = found[folder.name, layout]
        assert planned(folder, layout, 4) == dict(zip(ranks, sizes, strict=True))
