"""linear_distribution_loss against the oracle, on every CPU backend; and the oracle against its definition."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch

from megatron_gopd.kernels import backend, chunks, linear_distribution_loss
from tests.kernels.distribution_case import TEMPERATURE, Case, relative, rows_of, values_of
from tests.kernels.test_backends import CPP, needs_cpp

torch_backend = importlib.import_module("megatron_gopd.kernels.torch_backend")
MODES = ["one_pass", "recompute"]
KINDS = {
    "lambda 0": Case(lambda_=0.0),
    "lambda 1": Case(lambda_=1.0),
    "lambda 1.25": Case(),
    "lambda 2": Case(lambda_=2.0),
    "clamp": Case(clamp=0.4),
    "forward": Case(divergence="forward_kl"),
    "forward, lambda 1": Case(divergence="forward_kl", lambda_=1.0),
    "forward, lambda 2, clamp": Case(divergence="forward_kl", lambda_=2.0, clamp=0.4),
    "no sampled term": Case(sampled=False),
}


@pytest.fixture(params=[pytest.param("cpp", marks=needs_cpp), "torch"])
def name(request, monkeypatch):
    """The backend in use."""
    monkeypatch.setattr(backend, "_cpp", lambda: CPP if request.param == "cpp" else None)
    monkeypatch.setattr(chunks, "TOKENS", 70)  # ragged chunks
    return request.param


def fused(case: Case, upstream: float = 1.0, **settings):
    """The loss's values and both gradients."""
    hidden, weight, targets, target = case.tensors()
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    found = linear_distribution_loss(
        hidden, weight, targets, case.loss, rows_of(case.tokens), target, temperature=TEMPERATURE, **settings
    )
    (upstream * found.loss).backward()
    return found, hidden.grad, weight.grad


def compare(found, expected, of_values: float, of_gradients: float):
    for what, value in values_of(expected[0]).items():
        torch.testing.assert_close(values_of(found[0])[what].double(), value, rtol=1e-6 if of_values > 1e-6 else 0, atol=of_values)
    torch.testing.assert_close(found[0].loss.double(), expected[0].loss, rtol=of_values, atol=of_values)
    for gradient, exact in zip(found[1:], expected[1:], strict=True):
        if exact.abs().max() > 1e-12:  # a vocabulary of one has none
            assert relative(gradient, exact) < of_gradients
        else:
            assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("block", [1, 5, 20, 21, 8192])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_float64_equals_the_oracle(kind, mode, block, monkeypatch):
    monkeypatch.setattr(torch_backend, "BLOCK", block)
    monkeypatch.setattr(chunks, "TOKENS", 4)
    compare(fused(KINDS[kind], 3.0, mode=mode), KINDS[kind].expected(3.0), 1e-12, 1e-12)


BOUNDS = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1e-5, 5e-3)}  # values (nats), gradients (relative)
SHAPES = {
    "one": Case(1, (1, 1, 1), (2, 2, 2), 1),
    "whole tiles": Case(64, (128, 128, 128), (64, 64, 64), 128),
    "ragged": Case(130, (2310, 2303, 2320), (130, 34, 66), 2301),
    "near": Case(70, (1303, 1303, 1303), (64, 64, 64), 1301, near=0.3),
    "odd": Case(40, (300, 300, 300), (33, 33, 33), 300),  # C++ does not take its bf16
}


@pytest.mark.parametrize("dtype", BOUNDS, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "kind"), [(shape, kind) for shape in SHAPES for kind in KINDS if shape == "ragged" or kind in ("lambda 1", "lambda 1.25", "forward")])
def test_values_and_gradients_are_those_of_the_oracle(name, shape, kind, mode, dtype):
    shape = SHAPES[shape]
    sizes = {field: getattr(shape, field) for field in ("tokens", "rows", "hidden", "shared", "near")}
    case = dataclasses.replace(KINDS[kind], **sizes, dtype=dtype)
    compare(fused(case, 3.0, mode=mode), case.expected(3.0), *BOUNDS[dtype])
