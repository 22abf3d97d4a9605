"""linear_logprob against log_softmax of the whole logits, in float64."""

from __future__ import annotations

import importlib

import pytest
import torch

from megatron_gopd.kernels import backend, linear_log_softmax, linear_logprob

module = importlib.import_module("megatron_gopd.kernels.torch_backend")
TOKENS, HIDDEN, VOCABULARY = 9, 6, 23


@pytest.fixture(params=[1, 5, 22, 23, 24, 8192])
def block(request, monkeypatch):
    """Vocabulary columns a block: single, ragged, one short, exact, one more, the default."""
    monkeypatch.setattr(module, "BLOCK", request.param)


def inputs(tokens=TOKENS, vocabulary=VOCABULARY, dtype=torch.float64):
    """hidden, weight, targets; every token id is some row's target."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, dtype=torch.float64, generator=generator)
    weight = torch.randn(vocabulary, HIDDEN, dtype=torch.float64, generator=generator)
    return hidden.to(dtype), weight.to(dtype), torch.arange(tokens) * (vocabulary - 1) // max(tokens - 1, 1)


def naive(hidden, weight, targets, temperature=1.0):
    law = (hidden.double() @ weight.double().T / temperature).log_softmax(-1)
    return law.gather(1, targets[:, None])[:, 0], -(law.exp() * law).sum(1)


def both_gradients(function, hidden, weight, targets, **settings):
    """Gradients of one mix of logprobs and entropy with respect to hidden and weight."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logprobs, entropy = function(hidden, weight, targets, **settings)
    mix = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    return torch.autograd.grad((mix * logprobs + mix.flip(0) * entropy).sum(), (hidden, weight))


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_values_are_those_of_log_softmax(block, temperature):
    values = linear_logprob(*inputs(), temperature=temperature)
    torch.testing.assert_close(values, naive(*inputs(), temperature), rtol=0, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_are_those_of_log_softmax(block, temperature):
    gradients = both_gradients(linear_logprob, *inputs(), temperature=temperature)
    expected = both_gradients(naive, *inputs(), temperature=temperature)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=1e-13)


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 5)
    hidden, weight, targets = inputs(tokens=4)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: linear_logprob(h, w, targets, temperature=0.7), (hidden, weight))


def test_large_logits_do_not_overflow(block):
    hidden, weight, targets = inputs(dtype=torch.float32)
    logprobs, entropy = linear_logprob(1e3 * hidden, weight, targets)
    expected = naive(1e3 * hidden, weight, targets)
    torch.testing.assert_close((logprobs.double(), entropy.double()), expected, rtol=1e-5, atol=1e-3)


def test_padding_rows_count_for_nothing(block):
    hidden, weight, targets = inputs()
    padded = torch.cat([weight, 50 * torch.ones(4, HIDDEN, dtype=torch.float64)])
    values = linear_logprob(hidden, padded, targets, vocab_range=(0, VOCABULARY))
    torch.testing.assert_close(values, naive(hidden, weight, targets), rtol=0, atol=1e-13)


def test_padding_rows_get_no_gradient(block):
    hidden, weight, targets = inputs()
    padded = torch.cat([weight, torch.ones(4, HIDDEN, dtype=torch.float64)])
    _, gradient = both_gradients(linear_logprob, hidden, padded, targets, vocab_range=(0, VOCABULARY))
    assert (gradient[VOCABULARY:] == 0).all()


def test_rows_may_stand_for_later_token_ids(block):
    hidden, weight, targets = inputs()
    values = linear_logprob(hidden, weight, targets + 100, vocab_range=(100, 100 + VOCABULARY))
    torch.testing.assert_close(values, naive(hidden, weight, targets), rtol=0, atol=1e-13)


def test_inputs_need_not_be_contiguous(block):
    hidden, weight, targets = inputs()
    strided = hidden.T.contiguous().T, weight.T.contiguous().T, targets.repeat_interleave(2)[::2]
    torch.testing.assert_close(linear_logprob(*strided), naive(hidden, weight, targets), rtol=0, atol=1e-13)
    torch.testing.assert_close(both_gradients(linear_logprob, *strided), both_gradients(naive, *inputs()))


def test_no_tokens_give_no_values():
    hidden, weight, targets = inputs(tokens=0)
    logprobs, entropy = linear_logprob(hidden, weight, targets)
    assert logprobs.shape == entropy.shape == (0,)


def test_no_tokens_give_a_zero_gradient():
    _, gradient = both_gradients(linear_logprob, *inputs(tokens=0))
    assert gradient.shape == (VOCABULARY, HIDDEN)
    assert not gradient.any()


def test_bf16_inputs_are_computed_in_float32():
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(50, 64, generator=generator), 0.3 * torch.randn(500, 64, generator=generator)
    values = linear_logprob(hidden.bfloat16(), weight.bfloat16(), torch.arange(50))
    assert values[0].dtype == values[1].dtype == torch.float32
    expected = naive(hidden.bfloat16(), weight.bfloat16(), torch.arange(50))
    torch.testing.assert_close([value.double() for value in values], list(expected), rtol=0, atol=2e-5)


def test_bf16_gradients_are_rounded_once(monkeypatch):
    monkeypatch.setattr(backend, "_cpp", lambda: None)  # its GEMMs take the gradient of the logits in bf16
    hidden, weight, targets = inputs(dtype=torch.bfloat16)
    gradients = both_gradients(linear_logprob, hidden, weight, targets)
    expected = both_gradients(naive, hidden.double(), weight.double(), targets)
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
    torch.testing.assert_close([gradient.double() for gradient in gradients], list(expected), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("target", [-1, VOCABULARY, 10**6])
def test_a_target_outside_the_vocabulary_is_refused(block, target):
    hidden, weight, targets = inputs()
    targets[3] = target
    with pytest.raises(ValueError, match=rf"target {target} lies outside the vocabulary"):
        linear_logprob(hidden, weight, targets)


def test_a_target_in_the_padding_is_refused():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match=f"target {VOCABULARY - 1} lies outside"):
        linear_logprob(hidden, weight, targets, vocab_range=(0, VOCABULARY - 1))


@pytest.mark.parametrize("shape", [(TOKENS, HIDDEN + 1), (TOKENS, 1, HIDDEN)])
def test_hidden_that_does_not_fit_the_head_is_refused(shape):
    _, weight, targets = inputs()
    with pytest.raises(ValueError, match=r"hidden .* must be \[tokens, h\]"):
        linear_logprob(torch.zeros(shape, dtype=torch.float64), weight, targets)


def test_targets_that_do_not_fit_hidden_are_refused():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match=rf"targets \({TOKENS - 1},\) must be \[tokens\] = \[{TOKENS}\]"):
        linear_logprob(hidden, weight, targets[1:])


def test_the_whole_distribution_drops_padding():
    hidden, weight, _ = inputs(dtype=torch.float32)
    padded = torch.cat([weight, 50 * torch.ones(4, HIDDEN)])
    law = linear_log_softmax(hidden, padded, temperature=0.7, vocab_size=VOCABULARY)
    expected = (hidden.double() @ weight.double().T / 0.7).log_softmax(-1)
    assert law.dtype == torch.float32
    torch.testing.assert_close(law.double(), expected, rtol=0, atol=1e-5)
