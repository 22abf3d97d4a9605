"""YAML that would keep its reader busy for ever, or end it otherwise: a message, soon."""

from __future__ import annotations

import pytest

from megatron_gopd.errors import UserError
from tests.config.minimal import MINIMAL

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40))])
CASES = {
    "a list within itself": (
        "logging: &a [*a]",
        r"run\.yaml:\d+: not YAML: an alias stands within what it is an alias of",
    ),
    "a mapping within itself": ("logging: &a {wandb: *a}", r"run\.yaml:\d+: .* an alias stands within"),
    "a mapping that merges itself": ("logging: &a {<<: *a}", "an alias stands within"),
    "lists of lists": (LAUGHS, "it holds more than 100000 values, as its aliases repeat them"),
    "merges of merges": (MERGES, "it holds more than 100000 values, as its aliases repeat them"),
    "brackets": (f"logging: {'[' * 10_000}", "it is nested too deeply"),
    "no date": ("logging: 2024-99-99", "month must be in"),
    "a number of 10000 digits": (f"logging: {'1' * 10_000}", "not YAML: "),
    "a python object": ("logging: !!python/object/apply:os.system [touch owned]", "could not determine a constructor"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES)
def test_it_is_a_message(load, case):
    text, said = CASES[case]
    with pytest.raises(UserError, match=said):
        load(f"{MINIMAL}\n{text}\n")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("value", ["&a [*a]", "[" * 10_000, "2024-99-99", "1" * 10_000])
def test_in_an_override_too(load, value):
    with pytest.raises(UserError, match="the value is not YAML; quote it") as caught:
        load(MINIMAL, f"run.seed={value}")
    assert len(str(caught.value)) < 400


def test_anchors_are_fine(load):
    text = MINIMAL.replace("student: {", "student: &s {layout: &l {tp: 1}, ") + "\nlogging: {tensorboard: false}\n"
    assert load(text).student.layout.tp == 1
