"""On a GPU copies go beside what is computed, and both wait for each other where they must."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.mcore.copies import Copies, StreamCopies
from megatron_gopd.mcore.offload import Offloader
from tests.mcore.recorded_cuda import Cuda


@pytest.fixture
def cuda(monkeypatch):
    """With memory as a CPU has it; record_stream is a GPU's alone."""
    with Cuda() as recorded:
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda tensor, _: recorded.kept.append(tensor.untyped_storage().nbytes())
        )
        yield recorded


@pytest.fixture
def offloader(cuda):
    state = torch.arange(3.0)
    return Offloader(lambda: [state], copying=StreamCopies(cuda))


def test_what_leaves_is_copied_when_it_is_computed(cuda, offloader):
    cuda.compute("step")
    offloader.release()
    assert "step" in cuda.before["copy 0"]


def test_computation_goes_on_while_it_leaves(cuda, offloader):
    offloader.release()
    cuda.compute("rollout")
    assert "copy 0" not in cuda.before["rollout"]


def test_its_memory_is_kept_for_the_copy_before_it_is_freed(cuda, offloader):
    offloader.release()
    assert cuda.kept == [12]


def test_it_comes_back_beside_what_is_computed_meanwhile(cuda, offloader):
    offloader.release()
    offloader.fetch()
    cuda.compute("forward")
    offloader.restore()
    cuda.compute("step")
    assert "copy 1" not in cuda.before["forward"]
    assert "copy 1" in cuda.before["step"]


def test_it_comes_back_after_it_has_left_and_after_what_used_its_new_memory(cuda, offloader):
    offloader.release()
    cuda.compute("scoring")
    offloader.fetch()
    assert {"copy 0", "scoring"} <= cuda.before["copy 1"]


def test_what_came_in_vain_is_not_freed_before_it_is_there(cuda):
    weights = torch.arange(3.0)
    frozen = Offloader(lambda: [weights], frozen=True, copying=StreamCopies(cuda))
    frozen.release()
    frozen.fetch()
    frozen.release()
    cuda.compute("next")
    assert "copy 1" in cuda.before["next"]


def test_whoever_finishes_waits_for_what_leaves(cuda, offloader):
    offloader.release()
    offloader._copies.finish()
    cuda.compute("servers")
    assert "copy 0" in cuda.before["servers"]


def test_seconds_in_which_computation_stood_still_are_told_once(cuda, offloader):
    assert offloader._copies.take_waited_s() is None
    offloader.release()
    offloader.restore()
    assert offloader._copies.take_waited_s() == 0.25
    assert offloader._copies.take_waited_s() == 0


def test_on_a_cpu_a_copy_is_over_when_it_is_begun_and_all_of_it_is_waited_for():
    copies, target = Copies(), torch.zeros(3)
    copies.begin([(target, torch.ones(3))])
    assert target.sum() == 3
    assert copies.take_waited_s() > 0
