"""The C++ and the torch backend, through the public functions, against the naive head in float64."""

from __future__ import annotations

import pytest
import torch

from megatron_gopd.kernels import backend, chunks, linear_logprob, linear_token_loss, naive_logprob
from megatron_gopd.kernels.linear_token_loss import with_gradient
from megatron_gopd.objective import TokenLoss, TokenRows, grpo_loss, sft_loss

CPP = backend._cpp()
needs_cpp = pytest.mark.skipif(CPP is None, reason="no C++ compiler")


@pytest.fixture(params=[pytest.param("cpp", marks=needs_cpp), "torch"])
def name(request, monkeypatch):
    """The backend in use."""
    monkeypatch.setattr(backend, "_cpp", lambda: CPP if request.param == "cpp" else None)
    monkeypatch.setattr(chunks, "TOKENS", 70)  # ragged chunks
    return request.param


def inputs(tokens, hidden, vocabulary, dtype, std=1.0):
    generator = torch.Generator().manual_seed(tokens + vocabulary)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    w = (torch.randn(vocabulary, hidden, generator=generator) * std * hidden**-0.5).to(dtype)
    return x, w, torch.randint(0, vocabulary, (tokens,), generator=generator)


def token_loss(logprobs, entropy, rows):
    slope = rows.weights.to(logprobs.dtype) * (logprobs.detach() + 3)
    return TokenLoss((slope - 0.1 * entropy).sum(), slope, torch.full_like(entropy, -0.1), {"slope": slope})


def rows_of(tokens):
    return TokenRows(torch.linspace(-1, 2, tokens), torch.zeros(tokens), torch.zeros(tokens))


def naive(hidden, weight, targets, temperature=1.0, upstream=1.0):
    """Log-probs, entropy and both gradients in float64, by autograd through the logits."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    logprobs, entropy = naive_logprob(hidden, weight, targets, temperature=temperature)
    result = token_loss(logprobs.detach(), entropy.detach(), rows_of(len(targets)))
    surrogate = (result.dloss_dlogprobs * logprobs).sum() + (result.dloss_dentropy * entropy).sum()
    gradients = torch.autograd.grad(upstream * surrogate, (hidden, weight))
    return logprobs.detach(), entropy.detach(), *gradients


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


SHAPES = [(1, 2, 1), (5, 6, 23), (64, 64, 128), (65, 66, 129), (200, 130, 5003), (7, 33, 300), (150, 64, 1)]
BOUNDS = {torch.float32: (1e-5, 2e-6), torch.bfloat16: (1e-5, 4e-3)}  # values (nats), gradients (relative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_those_of_the_naive_head(name, shape, dtype):
    tensors = inputs(*shape, dtype)
    values = linear_logprob(*tensors, temperature=0.7)
    for found, expected in zip(values, naive(*tensors, temperature=0.7)[:2], strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=BOUNDS[dtype][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["one_pass", "recompute"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients_are_those_of_the_naive_head(name, shape, mode, dtype):
    hidden, weight, targets = inputs(*shape, dtype)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    result = linear_token_loss(hidden, weight, targets, token_loss, rows_of(shape[0]), mode=mode, temperature=0.7)
    (3 * result.loss).backward()
    logprobs, entropy, *expected = naive(hidden, weight, targets, temperature=0.7, upstream=3.0)
    stated = token_loss(logprobs, entropy, rows_of(shape[0]))
    assert result.loss.item() == pytest.approx(stated.loss.item(), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(result.metrics["slope"].double(), stated.metrics["slope"], rtol=0, atol=5e-5)
    for found, gradient in zip((hidden.grad, weight.grad), expected, strict=True):
        assert found.dtype == dtype
        if gradient.abs().max() > 1e-12:  # a vocabulary of one has none
            assert relative(found, gradient) < BOUNDS[dtype][1]
        else:
            assert found.abs().max() < 1e-5


@pytest.mark.parametrize("uses_entropy", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_main_grad_receives_the_gradient_of_weight(name, early, uses_entropy):
    hidden, weight, targets = inputs(200, 64, 500, torch.bfloat16)
    loss = token_loss if uses_entropy else without_entropy
    own = weight.clone().requires_grad_()
    linear_token_loss(hidden, own, targets, loss, rows_of(200)).loss.backward()
    weight.requires_grad_()
    main_grad = torch.ones(weight.shape)
    scale = 1.0 if early else None
    result = linear_token_loss(hidden, weight, targets, loss, rows_of(200), main_grad=main_grad, main_grad_scale=scale)
    assert bool((main_grad == 1).all()) != early  # never written by the forward pass unless asked
    result.loss.backward()
    assert weight.grad is None
    assert relative(main_grad - 1, own.grad.double()) < 4e-3


def without_entropy(logprobs, entropy, rows):
    return token_loss(logprobs, entropy, rows)._replace(dloss_dentropy=None)


def test_recompute_adds_to_main_grad_in_the_backward_pass(name):
    hidden, weight, targets = inputs(100, 64, 300, torch.float32)
    main_grad, weight = torch.ones(weight.shape), weight.requires_grad_()
    result = linear_token_loss(hidden, weight, targets, token_loss, rows_of(100), mode="recompute", main_grad=main_grad)
    assert (main_grad == 1).all()
    result.loss.backward()
    assert relative(main_grad - 1, naive(hidden, weight, targets)[3]) < 1e-5


def test_a_second_backward_pass_of_one_pass_is_refused(name):
    hidden, weight, targets = inputs(5, 6, 23, torch.float32)
    result = linear_token_loss(hidden.requires_grad_(), weight, targets, token_loss, rows_of(5))
    result.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="use mode='recompute'"):
        result.loss.backward()


def test_another_scalar_than_was_foretold_is_refused(name):
    hidden, weight, targets = inputs(5, 6, 23, torch.float32)
    result = linear_token_loss(
        hidden,
        weight.requires_grad_(),
        targets,
        token_loss,
        rows_of(5),
        main_grad=torch.zeros(weight.shape),
        main_grad_scale=0.5,
    )
    with pytest.raises(RuntimeError, match="is 1.0, not 0.5"):
        result.loss.backward()


@pytest.mark.slow
@needs_cpp
def test_error_at_a_real_head():
    """bf16 inputs, h = 2560, V = 151936, logits of standard deviation 4."""
    hidden, weight, targets = inputs(32, 2560, 151936, torch.bfloat16, std=4.0)
    logits = torch.cat([hidden.double() @ rows.double().T for rows in weight.split(8192)], dim=1)
    law = logits.log_softmax(-1)
    targets[::2] = law.argmax(1)[::2]
    logprobs, entropy = linear_logprob(hidden, weight, targets)
    assert (logprobs.double() - law.gather(1, targets[:, None])[:, 0]).abs().max() < 2e-5
    assert (entropy.double() + (law.exp() * law).sum(1)).abs().max() < 5e-5


@needs_cpp
def test_threads_and_chunks_do_not_change_the_bits():
    tensors = inputs(300, 64, 5000, torch.bfloat16)
    expected, threads = linear_logprob(*tensors), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert all(map(torch.equal, linear_logprob(*tensors), expected))
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(0, 1), slice(40, 171)):
        values = linear_logprob(tensors[0][rows], tensors[1], tensors[2][rows])
        assert all(torch.equal(found, value[rows]) for found, value in zip(values, expected, strict=True))


@pytest.mark.parametrize("objective", [grpo_loss(kl_coefficient=0.1), sft_loss()], ids=["grpo", "sft"])
def test_every_objective_is_taken_as_it_is(name, objective):
    """GRPO off its policy: old, behaviour and reference log-probs around the student's, so that clips hold."""
    hidden, weight, targets = (
        t.requires_grad_() if t.is_floating_point() else t for t in inputs(150, 64, 128, torch.float32)
    )
    logprobs, entropy = naive_logprob(hidden, weight, targets)
    near = [logprobs.detach() + 0.5 * torch.randn(150, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    rows = TokenRows(torch.full((150,), 1 / 150), near[0], None, *near[1:3], outcome=near[3] - logprobs.detach())
    expected = with_gradient(objective(logprobs.detach(), entropy.detach(), rows), logprobs, entropy)
    gradients = torch.autograd.grad(expected, (hidden, weight))
    result = linear_token_loss(hidden, weight, targets, objective, rows)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for found, gradient in zip((hidden.grad, weight.grad), gradients, strict=True):
        assert relative(found, gradient.double()) < 1e-5
    if "clip_fraction" in result.metrics:
        assert 0 < result.metrics["clip_fraction"].mean() < 1
