"""What a node says it computes with."""

from __future__ import annotations

import torch

from megatron_gopd.launch import versions


def test_a_package_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(versions, "PACKAGES", ("torch", "no-such-package"))
    found = versions.versions()
    assert found["no-such-package"] == "missing"
    assert found["torch"] == torch.__version__


def test_a_machine_without_a_gpu():
    assert versions.hardware() == {"gpu": "none"}


def test_a_machine_with_a_gpu(monkeypatch, tmp_path):
    (tmp_path / "version").write_text("580.65.06\n")
    monkeypatch.setattr(versions, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(versions, "nccl_version", lambda: (2, 30, 7))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert versions.hardware() == {"gpu": "NVIDIA H100", "driver": "580.65.06"}
    found = versions.versions()
    assert (found["cuda"], found["nccl"]) == ("13.0", "2.30.7")
