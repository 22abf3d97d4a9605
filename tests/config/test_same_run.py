"""What makes two resolved configurations the same run."""

from __future__ import annotations

import copy

import pytest
import yaml

from megatron_gopd.config import load_config, to_yaml
from megatron_gopd.config.same_run import differences
from tests.config.minimal import MINIMAL


@pytest.fixture
def here(tmp_path) -> dict:
    (tmp_path / "run.yaml").write_text(MINIMAL)
    return yaml.safe_load(to_yaml(load_config(tmp_path / "run.yaml")))


def without(tree: dict, dotted: str) -> dict:
    """As a version wrote it that did not have the key."""
    older = copy.deepcopy(tree)
    *path, last = dotted.split(".")
    section = older
    for name in path:
        section = section[name]
    del section[last]
    return older


@pytest.mark.parametrize(
    "added",
    [
        "rollout.start_logprob_abs_diff",
        "training.hidden_states_gib",
        "sandbox",
        "evaluation",
        "algorithm.gradient",
        "student.fp8",
        "teachers.math.lambda",
    ],
)
def test_a_key_that_was_added_since_and_has_its_default_makes_no_other_run(here, added):
    assert list(differences(without(here, added), here)) == []


def test_a_key_that_was_added_since_and_is_set_makes_another(here):
    here["optimizer"]["clip_grad"] = 7.0
    assert list(differences(without(here, "optimizer.clip_grad"), here)) == [
        "optimizer.clip_grad: there absent, here 7.0"
    ]


def test_a_key_that_is_known_no_more_makes_another(here):
    there = copy.deepcopy(here)
    there["optimizer"]["momentum"] = 0.9
    assert list(differences(there, here)) == ["optimizer.momentum: there 0.9, here absent"]


def test_a_teacher_more_makes_another(here):
    older = without(here, "teachers.math")
    assert [each.partition(":")[0] for each in differences(older, here)] == ["teachers.math"]
