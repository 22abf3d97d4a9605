"""What a machine is found to have; GPUs and Transformer Engine are made up."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch

from megatron_gopd import machine
from megatron_gopd.errors import UserError


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of compute capability 7.5, as rank 3 holds it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "T4")


@pytest.fixture
def transformer_engine(monkeypatch):
    """transformer_engine(error) -> it is installed, and raises `error` when it is imported, or nothing."""

    def call(error: Exception | None) -> None:
        def import_module(name: str) -> None:
            if error:
                raise error

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
        monkeypatch.setattr(importlib, "import_module", import_module)

    machine.te_problem.cache_clear()
    yield call
    machine.te_problem.cache_clear()


def test_models_are_on_the_rank_s_gpu(gpu):
    assert machine.device() == torch.device("cuda", 3)


def test_without_a_gpu_models_are_on_the_cpu():
    assert machine.device() == torch.device("cpu")
    assert machine.capability() is None


def test_a_gpu_too_old_for_bf16(gpu):
    with pytest.raises(UserError, match=r"^student: dtype bfloat16 needs .* T4, has 7.5; set dtype: float32$"):
        machine.check_dtype("bfloat16", "student")


def test_float32_runs_on_any_gpu(gpu):
    machine.check_dtype("float32", "student")


def test_transformer_engine_is_not_used_without_a_gpu(transformer_engine):
    transformer_engine(None)
    assert machine.te_problem() == "there is no GPU"
    assert not machine.have_te()


def test_transformer_engine_that_imports(gpu, transformer_engine):
    transformer_engine(None)
    assert machine.have_te()


def test_what_it_said_where_it_does_not_import(gpu, transformer_engine):
    transformer_engine(ImportError("undefined symbol: _ZN3c10\nand more"))
    with pytest.raises(UserError, match=r"it does not import: ImportError: undefined symbol: _ZN3c10\. Build it"):
        machine.have_te()


def test_a_gpu_that_is_asked_for_and_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine.check_device("auto")
    machine.check_device("cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="run.device is cuda, and there is no GPU on .*: this torch, .*, is a build"):
        machine.check_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is empty; unset it, or set run.device: auto"):
        machine.check_device("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="look at nvidia-smi there"):
        machine.check_device("cuda")


def test_gpus_in_sight_of_a_run_on_cpus_are_refused(gpu):
    machine.check_device("auto")
    machine.check_device("cuda")
    with pytest.raises(UserError, match="run.device is cpu, and GPUs are in sight: set CUDA_VISIBLE_DEVICES="):
        machine.check_device("cpu")
