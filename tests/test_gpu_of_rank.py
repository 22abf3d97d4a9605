"""Which GPU a rank takes, and which ranks are refused; GPUs are made up."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.distributed as dist

from megatron_gopd import gpu_of_rank
from megatron_gopd.errors import UserError
from megatron_gopd.gpu_of_rank import SHARE, check_gpus, nccl_version, take_gpu


@pytest.mark.parametrize(
    ("local_rank", "visible", "taken"),
    [
        ("3", 8, 3),  # torchrun shows all
        ("3", 1, 0),  # srun may show each rank its own
        ("3", 2, 1),  # ranks that share
        (None, 8, 0),
    ],
)
def test_the_gpu_a_rank_takes(monkeypatch, local_rank, visible, taken):
    found = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    take_gpu()
    assert found == [taken]


@pytest.fixture
def check(monkeypatch):
    """check(node and GPU of each rank, NCCL's version, **variables) -> None, or the message."""

    def call(*taken: tuple[str, str | None], nccl: tuple[int, ...] = (2, 30, 7), **variables: str) -> str | None:
        monkeypatch.delenv(SHARE, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(dist, "get_world_size", lambda: len(taken))
        monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), taken))
        monkeypatch.setattr(gpu_of_rank, "nccl_version", lambda: nccl)
        try:
            check_gpus()
        except UserError as error:
            return str(error)
        return None

    return call


def test_a_gpu_each(check):
    assert check(("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-3")) is None


def test_no_gpu_at_all(check):
    assert check(("a", None), ("a", None)) is None


def test_ranks_that_share_are_named(check):
    message = check(("a", "GPU-1"), ("a", "GPU-2"), ("a", "GPU-1"))
    assert message.startswith("ranks 0 and 2 have the same GPU of a, and NCCL asks for one each")
    assert f"{SHARE}=1" in message


def test_ranks_share_where_it_is_asked_for(check):
    assert check(("a", "GPU-1"), ("a", "GPU-1"), **{SHARE: "1"}) is None


def test_an_nccl_that_cannot_share(check):
    message = check(("a", "GPU-1"), ("a", "GPU-1"), nccl=(2, 28, 9), **{SHARE: "1"})
    assert "from NCCL 2.30 on, and this is NCCL 2.28.9" in message


def test_a_rank_without_a_gpu_among_others(check):
    assert check(("a", "GPU-1"), ("b", None)).startswith("rank 1, on b, sees no GPU, and others do")


class LoadedNccl:
    """libnccl.so.2 of one version."""

    def __init__(self, _):
        pass

    def ncclGetVersion(self, number):  # noqa: N802
        number._obj.value = 23007


def test_the_version_is_of_the_nccl_that_is_loaded(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", LoadedNccl)
    assert nccl_version() == (2, 30, 7)
