"""Logits of a few ids a token, against all logits. Shards and slices are tested with the student, on ranks."""

from __future__ import annotations

import sys

import pytest
import torch

from megatron_gopd.kernels import chunks, linear_logits

MODULE = sys.modules[linear_logits.__module__]
IDS = torch.tensor([[3, 0, 8], [8, -1, 3], [5, 5, 3], [10, 1, 2], [0, 7, 11]])
HERE = (IDS >= 0) & (IDS < 11)
TEMPERATURE = 0.7


@pytest.fixture(params=["whole", "in pieces"])
def head(request, monkeypatch):
    """hidden [5, 4], weight [12, 4] of which the last row is padding, float64, that ask for gradients."""
    if request.param == "in pieces":
        monkeypatch.setattr(MODULE, "PIECE_BYTES", 70)
        monkeypatch.setattr(chunks, "TOKENS", 2)
    random = torch.Generator().manual_seed(1)
    return [torch.randn(size, 4, dtype=torch.float64, generator=random).requires_grad_() for size in (5, 12)]


def few(hidden, weight, **keywords):
    return linear_logits(hidden, weight, IDS, temperature=TEMPERATURE, vocab_range=(0, 11), **keywords)


def oracle(hidden, weight):
    logits = hidden @ weight.T / TEMPERATURE
    return torch.where(HERE, logits.gather(1, IDS.clamp(0, 10)), 0.0)


def gradients(found, head):
    slopes = torch.randn(IDS.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((found * slopes).sum(), head, allow_unused=True)


def test_logits_and_gradients_are_those_of_all_logits(head):
    found, expected = few(*head), oracle(*head)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    for mine, theirs in zip(gradients(found, head), gradients(expected, head), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


def test_the_gradient_of_the_head_is_added_to_its_buffer(head):
    buffer = torch.ones(12, 4)
    _, of_weight = gradients(few(*head, main_grad=buffer), head)
    expected = gradients(oracle(*head), head)[1]
    assert of_weight is None
    torch.testing.assert_close(buffer - 1, expected.float(), rtol=0, atol=1e-6)


def test_narrow_inputs_are_multiplied_in_float32(head):
    hidden, weight = (each.detach().bfloat16() for each in head)
    found = few(hidden, weight)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, oracle(hidden.float(), weight.float()), rtol=1e-6, atol=1e-6)


def test_a_frozen_head_gets_no_gradient(head):
    hidden, weight = head[0], head[1].detach()
    (found,) = gradients(few(hidden, weight), [hidden])
    (expected,) = gradients(oracle(hidden, weight), [hidden])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
