"""That nothing of a job on a GPU lies elsewhere, seen without one: fake tensors of a GPU refuse to meet the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import save_tiny

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("name", "layout", "dtype"),
    [
        ("qwen2-untied", "tp=2,sequence_parallel=true", "float32"),
        ("qwen3-tied", "cp=2", "bfloat16"),
        ("qwen3moe-untied", "tp=1", "bfloat16"),
    ],
)
def test_a_student_learns_by_either_gradient_and_a_teacher_scores_on_the_gpu_alone(
    name, layout, dtype, guard, tmp_path
):
    command = [sys.executable, str(HERE / "fake_gpu.py"), str(save_tiny(tmp_path, name)), layout, dtype]
    environment = os.environ | {"LD_PRELOAD": str(guard), "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["tensors"] > 100
    assert seen["elsewhere"] == []
