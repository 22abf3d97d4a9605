"""Frozen models that wait in host memory come when it is their turn, or one ahead of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_gopd.policies.turns import Turns


@pytest.fixture
def models():
    return {name: torch.nn.Linear(2, 2) for name in "abc"}


def waiting(models, *, ahead: bool) -> Turns:
    turns = Turns()
    for name, module in models.items():
        turns.send_away(name, SimpleNamespace(module=module), ahead=ahead)
    return turns


def here(models) -> str:
    """The names of those that take memory."""
    return "".join(name for name, module in models.items() if module.weight.untyped_storage().nbytes())


def seen(models, turns: Turns, order: str) -> list[str]:
    """Who is there while each is asked, and after all."""
    found = []
    with turns.of(order):
        for name in order:
            with turns.resident(name):
                found.append(here(models))
    return [*found, here(models)]


def test_one_is_there_at_a_time(models):
    assert seen(models, waiting(models, ahead=False), "abc") == ["a", "b", "c", ""]


def test_the_next_comes_while_one_is_asked(models):
    assert seen(models, waiting(models, ahead=True), "abc") == ["ab", "bc", "c", ""]


def test_who_is_not_asked_does_not_come(models):
    assert seen(models, waiting(models, ahead=True), "cac") == ["ac", "ac", "c", ""]


def test_the_first_comes_when_a_chunk_is_on_its_way(models):
    turns = waiting(models, ahead=True)
    turns.prepare()
    assert here(models) == "a"
    assert seen(models, turns, "b") == ["ab", ""]


def test_outside_of_a_turn_nobody_follows(models):
    turns = waiting(models, ahead=True)
    with turns.resident("a"):
        assert here(models) == "a"


def test_values_are_the_same(models):
    before = {name: module.weight.detach().clone() for name, module in models.items()}
    turns = waiting(models, ahead=True)
    with turns.of("ab"), turns.resident("a"), turns.resident("b"):
        assert all(torch.equal(models[name].weight, before[name]) for name in "ab")
