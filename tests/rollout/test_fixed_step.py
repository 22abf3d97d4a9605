"""That a GPU can capture a decoding step, seen without one: no tensor lies elsewhere, nothing waits for a value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import save_tiny

HERE = Path(__file__).parent
PRODUCTS = {"qwen3-tied": 7, "qwen3moe-untied": 5}  # of a layer, but for the experts' own


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_step_is_launched_without_a_look_at_what_it_computes(name, guard, tmp_path):
    command = [sys.executable, str(HERE / "fake_gpu_step.py"), str(save_tiny(tmp_path, name))]
    environment = os.environ | {"LD_PRELOAD": str(guard), "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert set(seen["where"].values()) == {"cuda"}
    assert seen["calls"]["aten::linear"] == 4 * PRODUCTS[name] + 1


def test_a_look_would_be_found():
    """What the test above relies on."""
    import torch
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(3).sum().item()
