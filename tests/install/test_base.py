"""make install on a machine with a GPU: the order, and how a failed build ends. pip and nvidia-smi are stand-ins."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("setup.py", "constraints-cpu.txt", "constraints-gpu.txt", "scripts/install")

# the environment's python: notes what pip is asked for, answers for torch, and fails where it is told to
PYTHON = """#!/usr/bin/env bash
case "$*" in
*torch.__version__*) echo "${TORCH_IS:-2.14.1+cu130}" ;;
*torch.version.cuda*) echo 13.0 ;;
*"import glob"*) echo /wheels/include ;;
*"-m pip"*) echo "${CPATH:+CPATH=$CPATH }${CUDA_HOME:+CUDA_HOME=$CUDA_HOME }$*" >>"$CALLS" ;;
esac
if [[ -n "${FAILS:-}" && "$*" == *"$FAILS"* ]]; then echo "$SAYS"; exit 1; fi
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A checkout and a PATH that hold what the scripts need, and a GPU's driver."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, tmp_path / part)
    for name, text in {".venv/bin/python": PYTHON, "bin/nvidia-smi": "#!/bin/sh\n"}.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("CUDA_HOME", "/another/cuda")
    return tmp_path


def install(machine: Path, **variables: str) -> subprocess.CompletedProcess:
    command = [machine / "scripts/install/base.sh"]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)


def calls(machine: Path) -> list[str]:
    """What pip was asked for, so far; forgotten with the call."""
    file = machine / "calls"
    found = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return found


def place(found: list[str], words: str) -> int:
    return next(number for number, call in enumerate(found) if words in call)


def test_transformer_engine_is_built_for_the_torch_that_is_there(machine):
    done = install(machine)
    assert done.returncode == 0, done.stderr
    found = calls(machine)
    order = ["constraints-gpu.txt torch", "ninja pybind11", "transformer-engine[pytorch]==", "-e .[dev,gpu]"]
    assert [place(found, words) for words in order] == sorted(place(found, words) for words in order)
    build = found[place(found, "transformer-engine[pytorch]==")]
    assert "--no-build-isolation" in build
    assert "--no-cache-dir" in build


def test_the_headers_are_those_of_torchs_cuda(machine):
    install(machine)
    found = calls(machine)
    assert "cuda-toolkit[cccl,crt,nvcc]==13.0.*" in found[place(found, "pybind11")]
    build = found[place(found, "transformer-engine[pytorch]==")]
    assert build.startswith("CPATH=/wheels/include -m pip")  # and no CUDA_HOME


def test_it_is_built_once(machine):
    install(machine)
    calls(machine)
    (machine / ".venv/.installed").unlink()
    install(machine)
    assert not [call for call in calls(machine) if "transformer-engine" in call]


def test_it_is_built_anew_for_another_torch(machine):
    install(machine)
    calls(machine)
    (machine / ".venv/.installed").unlink()
    install(machine, TORCH_IS="2.15.0+cu130")
    found = calls(machine)
    assert place(found, "uninstall --quiet --yes transformer_engine_torch") < place(
        found, "transformer-engine[pytorch]=="
    )


@pytest.mark.parametrize(
    ("fails", "says", "told"),
    [
        ("transformer-engine[pytorch]", "a.h:3:10: fatal error: cudnn.h: No such file or directory", "cuDNN's headers"),
        ("transformer-engine[pytorch]", "a.h:3:10: fatal error: crt/host_config.h: No such file", "CUDA's headers"),
        ("transformer-engine[pytorch]", "Could not find NVCC executable", "missing: nvcc"),
        ("transformer-engine[pytorch]", "c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=2"),
        ("pybind11", "ERROR: No matching distribution found for pybind11", "No matching distribution found"),
        ("import transformer_engine", "ImportError: undefined symbol: _ZN3c10", "does not import"),
    ],
)
def test_a_build_that_fails_says_what_is_missing_and_where_its_log_is(machine, fails, says, told):
    done = install(machine, FAILS=fails, SAYS=says)
    assert done.returncode == 2
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error: Transformer Engine 2.20.2 ")
    assert told in message
    assert message.endswith(f"The log: {machine}/.venv/transformer-engine.log")
    assert says in (machine / ".venv/transformer-engine.log").read_text()
    assert not [stamp for stamp in (".installed", ".transformer-engine") if (machine / ".venv" / stamp).exists()]


def test_without_a_gpu_it_is_not_built(machine):
    (machine / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert install(machine).returncode == 0
    assert not [call for call in calls(machine) if "transformer" in call]


def test_an_image_is_built_for_gpus_where_there_is_none(machine):
    """And no driver, without which Transformer Engine need not import."""
    (machine / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    done = install(machine, DEVICE="gpu", FAILS="import transformer_engine", SAYS="ImportError: libcuda.so.1")
    assert done.returncode == 0, done.stderr
    found = calls(machine)
    order = ["constraints-gpu.txt torch", "transformer-engine[pytorch]==", "-e .[dev,gpu]"]
    assert [place(found, words) for words in order] == sorted(place(found, words) for words in order)


def test_no_extra_asks_for_a_build_in_isolation():
    assert '"transformer-engine' not in (ROOT / "setup.py").read_text()
