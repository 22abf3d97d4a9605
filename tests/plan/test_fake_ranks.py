"""A fake rank holds and sends what a real one does: bytes and messages, in every layout."""

from __future__ import annotations

import pytest

from tests.plan.student_on_ranks import observe_fake, observe_real
from tests.ranks import on_ranks
from tests.tiny_models import save_tiny

MIXTURE, DENSE = "qwen3moe-untied", "qwen3-tied"
QUICK = {DENSE: ["tp=2,sequence_parallel=true", "pp=2", "ranks=1-1"], MIXTURE: ["ep=2"]}
ON_TWO = {DENSE: ["", "tp=2", "cp=2"], MIXTURE: ["", "tp=2", "tp=2,etp=2", "cp=2", "pp=2"]}
ON_FOUR = {
    DENSE: ["tp=2,pp=2,sequence_parallel=true", "tp=2,cp=2,sequence_parallel=true", "cp=2,pp=2", "tp=2,ranks=2-3"],
    MIXTURE: ["ep=4", "tp=2,ep=4", "tp=2,pp=2,ep=2", "tp=2,etp=2,ep=2", "cp=2,ep=2"],
}


def _pairs(layouts: dict[str, list[str]]) -> list[tuple[str, str, str]]:
    return [(name, layout, dtype) for name, of in layouts.items() for layout in of for dtype in _dtypes(layout)]


def _dtypes(layout: str) -> list[str]:
    return ["bfloat16"] if layout else ["bfloat16", "float32"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    return {name: save_tiny(folder, name) for name in (MIXTURE, DENSE)}


@pytest.fixture(scope="module")
def quick(folders):
    return _observed(folders, QUICK, 2)


@pytest.fixture(scope="module")
def on_two(folders):
    return _observed(folders, ON_TWO, 2)


@pytest.fixture(scope="module")
def on_four(folders):
    return _observed(folders, ON_FOUR, 4)


def _observed(folders, layouts, world: int) -> dict:
    cases = [(folders[name], layout, dtype) for name, layout, dtype in _pairs(layouts)]
    return on_ranks(world, observe_real, cases=cases)


@pytest.mark.parametrize(("name", "layout", "dtype"), _pairs(QUICK))
def test_some_layouts_of_two_ranks(folders, quick, name, layout, dtype):
    _compare(quick, (folders[name], layout, dtype), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "dtype"), _pairs(ON_TWO))
def test_two_ranks(folders, on_two, name, layout, dtype):
    _compare(on_two, (folders[name], layout, dtype), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "dtype"), _pairs(ON_FOUR))
def test_four_ranks(folders, on_four, name, layout, dtype):
    _compare(on_four, (folders[name], layout, dtype), 4)


def _compare(real: dict, case: tuple, world: int) -> None:
    for rank in range(world):
        assert observe_fake(case, rank, world) == real[case][rank], f"rank {rank}"
