"""Inputs at the edge: computed right, or refused with the row."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.kernels import backend, linear_logprob, linear_token_loss
from tests.kernels.test_backends import CPP, inputs, naive, needs_cpp, relative, rows_of, token_loss

MODES = ["one_pass", "recompute"]


@pytest.fixture(params=[pytest.param("cpp", marks=needs_cpp), "torch"], autouse=True)
def name(request, monkeypatch):
    monkeypatch.setattr(backend, "_cpp", lambda: CPP if request.param == "cpp" else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_logits_of_minus_ten_thousand(dtype):
    hidden, weight, targets = torch.ones(3, 4, dtype=dtype), torch.full((50, 4), -2500.0, dtype=dtype), torch.arange(3)
    logprobs, entropy = linear_logprob(hidden, weight, targets)
    uniform = torch.tensor(50.0).log()
    torch.testing.assert_close(logprobs, -uniform.expand(3))
    torch.testing.assert_close(entropy, uniform.expand(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_hidden_that_is_not_finite_is_refused_with_its_row(value, dtype):
    hidden, weight, targets = inputs(9, 6, 300, dtype)
    hidden[4, 2] = value
    said = "the log-prob of row 4 is not finite: hidden or weight hold NaN or infinite values"
    with pytest.raises(ValueError, match=said):
        linear_logprob(hidden, weight, targets)
    for mode in MODES:
        with pytest.raises(ValueError, match=said):
            linear_token_loss(hidden.requires_grad_(), weight, targets, token_loss, rows_of(9), mode=mode)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weight_that_is_not_finite_is_refused(value):
    hidden, weight, targets = inputs(9, 6, 300, torch.float32)
    weight[299, 0] = value
    with pytest.raises(ValueError, match="the log-prob of row 0 .and of 8 more. is not finite"):
        linear_logprob(hidden, weight, targets)


def test_without_the_check_only_the_broken_row_is_not_finite():
    hidden, weight, targets = inputs(9, 6, 300, torch.float32)
    hidden[4, 2] = torch.nan
    logprobs, _ = linear_logprob(hidden, weight, targets, check_finite=False)
    assert torch.isfinite(logprobs).tolist() == [row != 4 for row in range(9)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", [-1, 300, 10**12])
def test_a_target_out_of_range_is_refused(target, mode):
    hidden, weight, targets = inputs(9, 6, 300, torch.float32)
    targets[3] = target
    with pytest.raises(ValueError, match=f"target {target} lies outside the vocabulary"):
        linear_token_loss(hidden.requires_grad_(), weight, targets, token_loss, rows_of(9), mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_no_tokens_give_a_loss_of_zero_and_zero_gradients(mode):
    hidden, weight, targets = inputs(0, 6, 300, torch.bfloat16)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    result = linear_token_loss(hidden, weight, targets, token_loss, rows_of(0), mode=mode)
    result.loss.backward()
    assert result.loss.item() == 0
    assert result.metrics["slope"].shape == (0,)
    assert hidden.grad.shape == (0, 6)
    assert not weight.grad.any()


@pytest.mark.parametrize("mode", MODES)
def test_rows_without_weight_move_nothing(mode):
    hidden, weight, targets = inputs(9, 6, 300, torch.float32)
    hidden, weight, rows = hidden.requires_grad_(), weight.requires_grad_(), rows_of(9)
    rows.weights.zero_()
    linear_token_loss(hidden, weight, targets, _without_entropy, rows, mode=mode).loss.backward()
    assert not hidden.grad.any()
    assert not weight.grad.any()


def _without_entropy(logprobs, entropy, rows):
    return token_loss(logprobs, 0 * entropy, rows)._replace(dloss_dentropy=None)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_tensors_need_not_be_contiguous(dtype, mode):
    hidden, weight, targets = inputs(9, 6, 300, dtype)
    strided = hidden.T.contiguous().T.requires_grad_(), weight.repeat_interleave(2, 1)[:, ::2].requires_grad_()
    every_other = targets.repeat_interleave(2)[::2]
    linear_token_loss(*strided, every_other, token_loss, rows_of(9), mode=mode).loss.backward()
    for tensor, gradient in zip(strided, naive(hidden, weight, targets)[2:], strict=True):
        assert relative(tensor.grad, gradient) < (2e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("mode", MODES)
def test_padding_rows_get_no_gradient(mode):
    hidden, weight, targets = inputs(9, 6, 300, torch.float32)
    padded = torch.cat([weight, torch.full((5, 6), torch.nan)]).requires_grad_()
    linear_token_loss(
        hidden.requires_grad_(), padded, targets, token_loss, rows_of(9), mode=mode, vocab_range=(0, 300)
    ).loss.backward()
    assert (padded.grad[300:] == 0).all()
    assert relative(hidden.grad, naive(hidden, weight, targets)[2]) < 2e-6


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"vocab_range": (0, 301)}, r"vocab_range \(0, 301\) does not fit 300 rows"),
        ({"rows_per_rank": [4]}, r"rows_per_rank \[4\] does not fit 9 rows on rank 0"),
        ({"main_grad": torch.zeros(300, 5)}, r"main_grad \(300, 5\) must be of weight's shape"),
        ({"exact": 3}, "exact = 3 must be a power of two"),
        ({"exact": 4}, r"exact = 4: pad the tokens \[9\]"),
        ({"exact": 8}, "exact = 8: pad the vocabulary so that 8 divides 300 rows"),
    ],
)
def test_settings_that_do_not_fit_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        linear_logprob(*inputs(9, 6, 300, torch.float32), **keys)


def test_dtypes_that_differ_are_refused():
    hidden, weight, targets = inputs(9, 6, 300, torch.float32)
    with pytest.raises(ValueError, match="hidden is torch.float32 but weight is torch.bfloat16"):
        linear_logprob(hidden, weight.bfloat16(), targets)
