"""Which reference a teacher is measured against, and that reading a configuration stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from megatron_gopd.config import Config

BASE = {"run": {"name": "demo", "steps": 1}, "student": {"model": "/student"}, "data": {"train": "x", "batch_size": 1}}


def config(teacher: dict, algorithm: dict) -> Config:
    return Config.model_validate(BASE | {"teachers": {"math": {"model": "/teacher"} | teacher}, "algorithm": algorithm})


@pytest.mark.parametrize(
    ("teacher", "algorithm", "reference"),
    [
        ({}, {}, "/student"),
        ({}, {"reference": "/base"}, "/base"),
        ({"reference": "/own"}, {"reference": "/base"}, "/own"),
        ({"reference": {"model": "/own"}}, {}, "/own"),
    ],
)
def test_the_nearest_reference_is_taken(teacher, algorithm, reference):
    assert config(teacher, algorithm).reference_of("math").model == reference


def test_the_same_weights_cannot_teach_without_another_prompt():
    with pytest.raises(ValueError, match=r"teachers\.math is the student's own initial model"):
        config({"model": "/student"}, {})


def test_reading_a_configuration_does_not_import_torch():
    code = "import sys, megatron_gopd.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
