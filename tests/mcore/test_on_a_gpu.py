"""That nothing of a job on a GPU lies elsewhere, seen without one: fake tensors of a GPU refuse to meet the CPU's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from tests.tiny_models import save_tiny

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of torch has a guard of its own"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="the stand-in for CUDA's guard is compiled"),
]


@pytest.fixture(scope="module")
def guard(tmp_path_factory) -> Path:
    """The library by which a CPU build of torch takes tensors of a GPU; to be loaded before torch."""
    library = tmp_path_factory.mktemp("guard") / "cuda_guard.so"
    paths = [f"-I{path}" for path in cpp_extension.include_paths()]
    paths += [word for path in cpp_extension.library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")]
    flags = f"-std=c++20 -w -fPIC -shared -D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}".split()
    source = str(HERE / "cuda_guard.cpp")
    subprocess.run(["c++", *flags, source, *paths, "-lc10", "-ltorch_cpu", "-o", str(library)], check=True, timeout=300)
    return library


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
