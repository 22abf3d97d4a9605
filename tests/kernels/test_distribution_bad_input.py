"""What a distribution loss refuses, by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_gopd.kernels import backend, linear_distribution_loss
from tests.kernels.distribution_case import Case, rows_of
from tests.kernels.test_backends import CPP, needs_cpp

CASE = Case(dtype=torch.float32)


@pytest.fixture(params=[pytest.param("cpp", marks=needs_cpp), "torch"])
def name(request, monkeypatch):
    monkeypatch.setattr(backend, "_cpp", lambda: CPP if request.param == "cpp" else None)


def run(hidden, weight, targets, target, **settings):
    return linear_distribution_loss(hidden, weight, targets, CASE.loss, rows_of(len(targets)), target, **settings)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("clamp", [None, 0.4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("head", ["student", "teacher", "reference"])
def test_a_row_that_is_not_finite_is_refused_with_its_head(name, head, value, clamp, divergence):
    case = dataclasses.replace(CASE, clamp=clamp, divergence=divergence)
    hidden, weight, targets, target = case.tensors()
    states = hidden if head == "student" else getattr(target, head).hidden
    states[4, 2] = value
    with pytest.raises(ValueError, match=f"the {head}'s log-prob of row 4 is not finite"):
        run(hidden.requires_grad_(), weight, targets, target)
    found = run(hidden, weight, targets, target, check_finite=False)
    column = {"student": found.entropy, "teacher": found.teacher_logprobs, "reference": found.reference_logprobs}[head]
    assert torch.isfinite(column).tolist() == [row != 4 for row in range(9)]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("head", ["teacher", "reference"])
def test_one_infinite_logit_is_not_dropped(name, head, value):
    """Of a token that is not the sampled one, and with a clamp, under which D stays finite."""
    hidden, weight, targets, target = dataclasses.replace(CASE, clamp=0.4).tensors()
    broken = getattr(target, head)
    broken.hidden[:, 0] = 1.0
    broken.weight[17, 0] = value
    with pytest.raises(ValueError, match=f"the {head}'s log-prob of row 0"):
        run(hidden, weight, targets, target)


@pytest.mark.parametrize("mode", ["one_pass", "recompute"])
def test_no_tokens_give_a_loss_of_zero_and_zero_gradients(name, mode):
    hidden, weight, targets, target = dataclasses.replace(CASE, tokens=0).tensors()
    weight.requires_grad_()
    found = run(hidden, weight, targets, target, mode=mode)
    found.loss.backward()
    assert found.loss.item() == 0
    assert found.divergence.shape == (0,)
    assert not weight.grad.any()


def test_a_sampled_id_that_the_teacher_lacks_is_refused(name):
    hidden, weight, targets, target = CASE.tensors()
    target = dataclasses.replace(target, teacher=dataclasses.replace(target.teacher, rows=21))
    targets[2] = 22
    with pytest.raises(ValueError, match="target 22 lies outside the teacher's vocabulary"):
        run(hidden, weight, targets, target)


def _changed(name: str, **fields):
    return lambda target: dataclasses.replace(target, **{name: dataclasses.replace(getattr(target, name), **fields)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_changed("teacher", rows=20), "the teacher's head has 20 rows from id 0 on, but ids up to 20 of this shard"),
        (_changed("reference", rows=20), "the reference's head has 20 rows from id 0 on"),
        (_changed("reference", rows=99), r"the reference's hidden .*: 99 rows do not fit"),
        (_changed("teacher", hidden=torch.zeros(8, 4)), r"the teacher's hidden \(8, 4\).*student's hidden has 9 rows"),
        (_changed("teacher", hidden=torch.zeros(9, 5)), r"the teacher's hidden \(9, 5\), weight .* must be"),
        (
            _changed("teacher", hidden=torch.zeros(9, 4).bfloat16()),
            r"the teacher's hidden .* are torch.bfloat16.*; the student is",
        ),
        (lambda target: dataclasses.replace(target, reference=None), "lambda = 1.25 needs a reference"),
        (
            lambda target: dataclasses.replace(target, shared=24),
            r"the student's head has ids up to 22, but 0 .. 23 are",
        ),
        (
            lambda target: dataclasses.replace(target, divergence="kl"),
            "divergence 'kl' must be one of reverse_kl, forw",
        ),
        (lambda target: dataclasses.replace(target, clamp=-1.0), "clamp -1.0 must not be negative"),
        (
            lambda target: dataclasses.replace(_changed("reference", log_sum=None)(target), clamp=1.0),
            "clamp needs the reference's log_sum",
        ),
        (
            lambda target: dataclasses.replace(_changed("teacher", log_sum=torch.zeros(3))(target), clamp=1.0),
            r"the teacher's log_sum \(3,\) must be \[tokens\] = \[9\]",
        ),
    ],
)
def test_a_target_that_does_not_fit_is_refused(change, said):
    hidden, weight, targets, target = CASE.tensors()
    with pytest.raises(ValueError, match=said):
        run(hidden, weight, targets, change(target))


def test_heads_of_dtypes_that_no_fast_backend_takes_together_run(name):
    """An odd hidden size, which C++ does not multiply in bf16, beside even ones."""
    case = Case(hidden=(6, 5, 10), dtype=torch.bfloat16)
    hidden, weight, targets, target = case.tensors()
    assert torch.isfinite(run(hidden, weight, targets, target).loss)
