"""Rotary embedding without Transformer Engine, beside Megatron's."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

TOKENS, HEADS, DIM = 37, 3, 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [DIM, DIM // 2], ids=["whole", "half"])
@pytest.mark.parametrize("mscale", [1.0, 1.3])
def test_values_and_gradients_have_megatrons_bits(dtype, turned, mscale):
    turn = import_module("megatron_gopd.mcore.rotary").turn  # prepares megatron.core
    of_megatron = import_module("megatron.core.models.common.embeddings.rope_utils")._apply_rotary_pos_emb_bshd
    torch.manual_seed(0)
    freqs, t = 50 * torch.rand(TOKENS, 1, 1, turned), torch.randn(TOKENS, 1, HEADS, DIM, dtype=dtype)
    above, found = torch.randn_like(t), []
    for of in (turn, of_megatron):
        t = t.detach().requires_grad_()
        value = of(t, freqs, mscale=mscale)
        value.backward(above)
        found.append((value, t.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
