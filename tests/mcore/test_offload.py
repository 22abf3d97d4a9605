"""Tensors that wait in host memory come back bit for bit, and take no memory meanwhile."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from megatron_gopd.mcore import pinned
from megatron_gopd.mcore.offload import Offloader


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return [torch.randn(5, 3), torch.randn(7, dtype=torch.float64).bfloat16()]


def test_released_storage_is_empty(tensors):
    offloader = Offloader(lambda: tensors)
    assert offloader.release() == 5 * 3 * 4 + 7 * 2
    assert [tensor.untyped_storage().nbytes() for tensor in tensors] == [0, 0]


def test_it_comes_back_bit_for_bit_in_the_same_objects(tensors):
    before, view = [tensor.clone() for tensor in tensors], tensors[0][1]
    offloader = Offloader(lambda: tensors)
    offloader.release()
    offloader.restore()
    assert all(torch.equal(tensor, value) for tensor, value in zip(tensors, before, strict=True))
    assert torch.equal(view, before[0][1])


def test_a_change_while_resident_is_kept(tensors):
    offloader = Offloader(lambda: tensors)
    offloader.release()
    with offloader.resident():
        tensors[0].add_(1)
        expected = tensors[0].clone()
    offloader.restore()
    assert torch.equal(tensors[0], expected)


def test_views_of_one_storage_are_moved_once():
    whole = torch.arange(6.0)
    offloader = Offloader(lambda: [whole[:3], whole[3:]])
    assert offloader.release() == 24
    offloader.restore()
    assert torch.equal(whole, torch.arange(6.0))


def test_releasing_twice_frees_nothing_more(tensors):
    offloader = Offloader(lambda: tensors)
    offloader.release()
    assert offloader.release() == 0


def test_host_memory_is_made_once(tensors):
    offloader = Offloader(lambda: tensors)
    places = []
    for _ in range(3):
        offloader.release()
        places.append([host.data_ptr() for host in offloader._hosts.values()])
        offloader.restore()
    assert places[0] == places[1] == places[2]


def test_what_comes_later_is_moved_too(tensors):
    held = tensors[:1]
    offloader = Offloader(lambda: held)
    offloader.release()
    offloader.restore()
    held.append(tensors[1])  # as moments are after the first step
    assert offloader.release() == 5 * 3 * 4 + 7 * 2


def test_frozen_tensors_are_copied_to_the_host_once(tensors):
    before = tensors[0].clone()
    offloader = Offloader(lambda: tensors, frozen=True)
    offloader.release()
    with offloader.resident():
        tensors[0].add_(1)  # nobody does; it shows that the second release copies nothing
    offloader.restore()
    assert torch.equal(tensors[0], before)


def test_pinned_memory_is_registered_while_it_is_held(monkeypatch):
    registered = {}
    runtime = SimpleNamespace(
        cudaHostRegister=lambda address, size, flags: registered.update({address: size}),
        cudaHostUnregister=registered.pop,
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "check_error", lambda error: None)
    first, second = pinned.host_memory([10, 20], pinned=True)
    first.fill_(1)
    assert registered == {first.data_ptr(): 30}
    del first
    assert second.sum() == 0 and len(registered) == 1
    del second
    gc.collect()
    assert not registered
