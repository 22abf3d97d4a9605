"""The RMS norm of the backend without Transformer Engine."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch


def written_out(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@pytest.mark.parametrize("shape", [(29, 1, 48), (29, 1, 3, 16)], ids=["hidden", "heads"])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_values_are_bitwise_those_written_out_and_gradients_those_of_autograd(shape, dtype, off):
    rms_norm = import_module("megatron_gopd.mcore.norm").rms_norm
    torch.manual_seed(0)
    inputs = [torch.randn(*size, dtype=dtype, requires_grad=True) for size in (shape, shape[-1:])]
    values = [of(*inputs, 1e-6) for of in (rms_norm, written_out)]
    assert torch.equal(*values)
    above = torch.randn(shape, dtype=dtype)
    ours, theirs = (torch.autograd.grad(value, inputs, above) for value in values)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=off, atol=off * float(other.abs().max()))


def test_it_keeps_its_input_and_a_number_a_row():
    rms_norm = import_module("megatron_gopd.mcore.norm").rms_norm
    kept, x = [], torch.randn(64, 128, requires_grad=True)
    weight = torch.ones(128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        rms_norm(x, weight, 1e-6)
    assert sorted(kept) == [64, 128, 64 * 128]
