"""Frozen models that wait in host memory come when it is their turn, or one ahead of it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_gopd.policies.turns import Turns


@pytest.fixture
def layers():
    return {name: torch.nn.Linear(2, 2) for name in "abc"}


def waiting(layers, *, ahead: bool) -> Turns:
    turns = Turns()
    for name, module in layers.items():
        turns.send_away(name, SimpleNamespace(module=module), ahead=ahead)
    return turns


def here(layers) -> str:
    """The names of those that take memory."""
    return "".join(name for name, module in layers.items() if module.weight.untyped_storage().nbytes())


def seen(layers, turns: Turns, order: str) -> list[str]:
    """Who is there while each is asked, and after all."""
    found = []
    with turns.of(order):
        for name in order:
            with turns.resident(name):
                found.append(here(layers))
    return [*found, here(layers)]


def test_one_is_there_at_a_time(layers):
    assert seen(layers, waiting(layers, ahead=False), "abc") == ["a", "b", "c", ""]


def test_the_next_comes_while_one_is_asked(layers):
    assert seen(layers, waiting(layers, ahead=True), "abc") == ["ab", "bc", "c", ""]


def test_who_is_not_asked_does_not_come(layers):
    assert seen(layers, waiting(layers, ahead=True), "cac") == ["ac", "ac", "c", ""]


def test_the_first_comes_when_a_chunk_is_on_its_way(layers):
    turns = waiting(layers, ahead=True)
    turns.prepare()
    assert here(layers) == "a"
    assert seen(layers, turns, "b") == ["ab", ""]


def test_outside_of_a_turn_nobody_follows(layers):
    turns = waiting(layers, ahead=True)
    with turns.resident("a"):
        assert here(layers) == "a"


def test_values_are_the_same(layers):
    before = {name: module.weight.detach().clone() for name, module in layers.items()}
    turns = waiting(layers, ahead=True)
    with turns.of("ab"), turns.resident("a"), turns.resident("b"):
        assert all(torch.equal(layers[name].weight, before[name]) for name in "ab")


def answers(folders, offload) -> list[np.ndarray]:
    """Of a teacher and its reference, beside another teacher that nobody asks."""
    from megatron_gopd.policies.scorers import Scorers
    from tests.policies.steps_on_ranks import batch, settings

    config = settings(folders["qwen3-untied"])
    teacher, reference = ({"model": str(folders[name]), "offload": offload} for name in ("qwen3-tied", "qwen3-untied"))
    teachers = {name: teacher | {"reference": reference} for name in ("teacher", "idle")}
    scorers = Scorers(type(config).model_validate(config.model_dump(by_alias=True) | {"teachers": teachers}))
    chunk = batch()
    scorers.prepare()
    scorers.score(chunk)
    return [values for row in chunk for values in (row.teacher_logprobs, row.reference_logprobs)]


def test_answers_are_the_same_bits_wherever_a_model_waits(models, alone):
    resident, demanded, ahead = (answers(models, offload) for offload in (False, True, "ahead"))
    for values, others, more in zip(resident, demanded, ahead, strict=True):
        np.testing.assert_array_equal(values, others)
        np.testing.assert_array_equal(values, more)
