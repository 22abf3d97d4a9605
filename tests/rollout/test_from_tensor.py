"""How tensors are written for servers: by value, or by what names a GPU everywhere."""

from __future__ import annotations

import base64
import inspect
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")


def test_what_torch_calls_the_device_is_where_sglang_looks_for_it():
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    from megatron_gopd.rollout.from_tensor import DEVICE

    assert list(inspect.signature(rebuild_cuda_tensor).parameters)[DEVICE] == "storage_device"


def test_a_gpu_is_written_by_its_uuid(monkeypatch):
    from types import SimpleNamespace

    from torch._subclasses.fake_tensor import FakeTensorMode

    from megatron_gopd.rollout import from_tensor

    with FakeTensorMode():
        tensor = torch.empty(2, device="cuda")
    monkeypatch.setattr(from_tensor, "reduce_tensor", lambda tensor: (dict, (0, 1, 2, 3, 4, 5, tensor.device.index, 7)))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"uuid of {device}"))
    written = from_tensor._text([("name", tensor)])
    assert b"uuid of cuda:0" in base64.b64decode(written)


def test_every_tensor_parallel_rank_has_a_text_of_the_rank_on_its_gpu():
    from tests.ranks import torchrun

    said = torchrun(2, Path(__file__).with_name("texts_on_ranks.py"))
    assert "[[0.0, 1.0], [1.0]]" in said


def test_by_value_it_is_the_tensors():
    from megatron_gopd.rollout.from_tensor import _text

    ((name, tensor),) = pickle.loads(base64.b64decode(_text([("weight", torch.arange(3))])))
    assert name == "weight" and tensor.tolist() == [0, 1, 2]


def test_after_a_failure_the_rest_of_an_export_is_drawn_and_not_shared(one_rank):
    """torch keeps a GPU's tensor for as long as somebody might still open it."""
    from megatron_gopd.rollout.from_tensor import pickled

    drawn, broken = [], []

    def tensors():
        for number in range(4):
            drawn.append(number)
            yield f"weight{number}", torch.zeros(2)

    buckets = pickled(tensors(), [[0]], 8, wanted=lambda: not broken)
    next(buckets)
    broken.append(True)
    assert list(buckets) == []
    assert drawn == [0, 1, 2, 3]
