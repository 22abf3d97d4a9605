"""What test_triton.py asserts on, computed in Triton's interpreter: {case: value} on stdout as JSON.

Run by the Python of .venv-triton with TRITON_INTERPRET=1, where the kernels work on CPU tensors.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import torch
from torch import Tensor

from megatron_gopd.kernels import (
    head,
    linear_distribution_loss,
    linear_logprob,
    linear_token_loss,
    triton_distribution,
    triton_products,
)
from megatron_gopd.kernels.backend import Upstream
from megatron_gopd.kernels.reference import naive_logprob
from megatron_gopd.kernels.triton_backend import TritonBackend
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows
from tests.kernels.distribution_case import TEMPERATURE, Case, relative, rows_of, values_of

TOKENS, HIDDEN, VOCABULARY = 150, 100, 333  # multiples of no tile
DESCRIBED = (300, 136, 333)  # rows of bf16 that a descriptor takes, over more tiles than there are programs
PROCESSORS = 2
CUBLAS = triton_products.by_cublas
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def hopper() -> TritonBackend:
    return TritonBackend(90, PROCESSORS)


def on_this_cpu(a: Tensor, b: Tensor, out: Tensor, add: bool) -> None:
    """What cuBLAS does on a GPU."""
    product = a.float() @ b.float()
    out.copy_(out.float() + product if add else product)


def inputs(dtype: torch.dtype, tokens=TOKENS, width=HIDDEN, vocabulary=VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * 2 / width**0.5
    return hidden.to(dtype), weight.to(dtype), torch.randint(vocabulary, (tokens,), generator=generator)


def slopes(tokens: int) -> tuple[Tensor, Tensor]:
    """d loss / d logprobs and d loss / d entropy of every token; both are 0 at a quarter of them."""
    slope = torch.linspace(-1, 1, tokens)
    slope[3::4] = 0
    return slope, -0.3 * slope


def token_loss(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
    loss = (rows.weights * logprobs + rows.behaviour_logprobs * entropy).sum()
    return TokenLoss(loss, rows.weights, rows.behaviour_logprobs, {})


def of_logprobs_alone(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
    return TokenLoss((rows.weights * logprobs).sum(), rows.weights, None, {})


def fused(hidden: Tensor, weight: Tensor, targets: Tensor, mode: str, loss=token_loss) -> list[Tensor]:
    """logprobs, entropy, gradient of hidden, gradient of weight."""
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    slope, of_entropy = slopes(len(targets))
    result = linear_token_loss(
        hidden, weight, targets, loss, TokenRows(slope, of_entropy, slope), mode=mode, temperature=0.7
    )
    return [result.logprobs, result.entropy, *torch.autograd.grad(result.loss, (hidden, weight))]


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, loss=token_loss) -> list[Tensor]:
    """The same of the oracle, in float64."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    logprobs, entropy = naive_logprob(hidden, weight, targets, temperature=0.7)
    slope, of_entropy = slopes(len(targets))
    loss = loss(logprobs, entropy, TokenRows(slope, of_entropy, slope)).loss
    return [logprobs.detach(), entropy.detach(), *torch.autograd.grad(loss, (hidden, weight))]


def errors(
    values: list[Tensor], expected: list[Tensor], terms: tuple[Tensor, Tensor] | None = None
) -> dict[str, float]:
    """Of values the largest difference, of gradients the relative one: to `terms` where they cancel to exactly 0."""
    pairs = list(zip(values, expected, strict=True))
    of_values = [float((one - two).abs().max()) for one, two in pairs[:2]]
    sizes = [size.norm() for size in terms or expected[2:]]
    of_gradients = [float((one - two).norm() / size) for (one, two), size in zip(pairs[2:], sizes, strict=True)]
    return dict(zip(("logprobs", "entropy", "grad_hidden", "grad_weight"), of_values + of_gradients, strict=True))


def against_oracle() -> dict[str, dict[str, float]]:
    found = {}
    for (name, dtype), mode in itertools.product(DTYPES.items(), ("one_pass", "recompute")):
        found[f"{name} {mode}"] = errors(fused(*inputs(dtype), mode), naive(*inputs(dtype)))
    for name, size in {"one token": (1, 64, 40), "aligned": (64, 64, 128)}.items():
        found[name] = errors(fused(*inputs(torch.float32, *size), "one_pass"), naive(*inputs(torch.float32, *size)))
    hidden, weight, targets = inputs(torch.float32, 5, 64, 1)  # p is 1: every gradient is slope - slope
    terms = slopes(5)[0][:, None] * weight, slopes(5)[0] @ hidden
    found["vocabulary of one"] = errors(
        fused(hidden, weight, targets, "one_pass"), naive(hidden, weight, targets), terms
    )
    hidden, weight, targets = inputs(torch.float32)
    strided = hidden.T.contiguous().T, weight.T.contiguous().T, targets.repeat_interleave(2)[::2]
    found["strided"] = errors(fused(*strided, "recompute"), naive(hidden, weight, targets))
    return found


def without_entropy() -> dict[str, dict[str, float]]:
    """A loss of log-probs alone: what is kept needs no pass of its own."""
    sizes = {"ragged": (TOKENS, HIDDEN, VOCABULARY), "described": DESCRIBED}
    found = {}
    for (size, shape), (name, dtype) in itertools.product(sizes.items(), DTYPES.items()):
        given = inputs(dtype, *shape)
        found[f"{name} {size}"] = errors(fused(*given, "one_pass", of_logprobs_alone), naive(*given, of_logprobs_alone))
    return found


def described() -> dict[str, dict[str, float]]:
    """Operands that are read through descriptors, by programs of several tiles, on both architectures."""
    found, given = {}, inputs(torch.bfloat16, *DESCRIBED)
    for capability, mode in itertools.product((90, 100), ("one_pass", "recompute")):
        head.backend_for = lambda _, capability=capability: TritonBackend(capability, PROCESSORS)
        found[f"{capability} {mode}"] = errors(fused(*given, mode), naive(*given))
    head.backend_for = lambda _: hopper()
    return found


def far_above_the_sample() -> dict[str, dict[str, float]]:
    """Logits of some rows that float32 cannot hold relative to those of the first ids: with an entropy and without."""
    hidden, weight, targets = inputs(torch.bfloat16, 70, 64, 600)
    hidden[::7, 3], weight[500, 3] = 8.0, 20.0  # 229 nats at the temperature
    hidden[1::7, 3], hidden[2::7, 3] = 1.4, -1.4  # 40 nats, which it can
    hidden[3::7, 3], targets[::14] = 4.0, 500
    return {
        loss.__name__: errors(fused(hidden, weight, targets, "one_pass", loss), naive(hidden, weight, targets, loss))
        for loss in (token_loss, of_logprobs_alone)
    }


def own_products() -> dict[str, float]:
    """bf16 multiplied by the kernel of this project, where cuBLAS does on a GPU."""
    chosen = triton_products.PRODUCTS.copy()
    triton_products.PRODUCTS.clear()
    found = errors(fused(*inputs(torch.bfloat16), "one_pass"), naive(*inputs(torch.bfloat16)))
    triton_products.PRODUCTS.update(chosen)
    return found


def asked_of_cublas() -> dict[str, str]:
    """Every pair of the table, asked as on a GPU, with shapes alone: the dtype that comes, or what is refused."""
    found = {}
    for (operands, result), add in itertools.product(triton_products.PRODUCTS, (False, True)):
        a, b = (torch.empty(8, 8, device="meta", dtype=operands) for _ in range(2))
        out = torch.empty(8, 8, device="meta", dtype=result)
        try:
            CUBLAS(a.T, b, out, add)
            found[f"{operands} {result} {add}"] = ""
        except RuntimeError as error:
            found[f"{operands} {result} {add}"] = str(error)
    return found


def blackwell() -> dict[str, float]:
    """The tile of sm_100, on the same inputs."""
    head.backend_for = lambda _: TritonBackend(100, PROCESSORS)
    return errors(fused(*inputs(torch.bfloat16), "one_pass"), naive(*inputs(torch.bfloat16)))


def far_below_zero() -> float:
    """Every logit near -1e4, and exact in float32: the error of values that a maximum from 0 would make infinite."""
    hidden, weight, targets = (torch.zeros_like(tensor) for tensor in inputs(torch.float32))
    hidden[:, 0], weight[:, 0] = 1.0, torch.arange(VOCABULARY) % 16 / 4 - 1e4
    values, expected = linear_logprob(hidden, weight, targets), naive_logprob(hidden.double(), weight.double(), targets)
    return max(float((one - two).abs().max()) for one, two in zip(values, expected, strict=True))


def sure_of_its_target() -> float:
    """p of the target is 0.995, and bf16 knows only 0.992 and 0.996: the relative error of its gradient, 1 - p."""
    hidden, weight = torch.zeros(1, 8, dtype=torch.bfloat16), torch.zeros(3, 8, dtype=torch.bfloat16)
    hidden[0, 0], weight[0, 0] = 1.0, 6.0
    triton, targets = hopper(), torch.tensor([0])
    statistics = triton.statistics(hidden, weight, targets, 1.0, keep=True)
    log_sum = statistics.peak + statistics.total.log()
    upstream = Upstream(log_sum, statistics.target_logit - log_sum, torch.zeros(1), torch.ones(1), None)
    gradient = triton.gradients(statistics.kept, hidden, weight, targets, 1.0, upstream, None, False)[0, 0]
    expected = 6.0 * 2 / (math.exp(6.0) + 2)
    return abs(float(gradient) / expected - 1)


def beyond_32_bits() -> float:
    """Rows of the weight that lie more than 2**31 elements apart: the error of its log-probs."""
    stride, rows = 2**23, 300
    weight = torch.empty(stride * rows, dtype=torch.bfloat16).view(rows, stride)[:, :HIDDEN]  # memory it never touches
    hidden, close, targets = inputs(torch.bfloat16, tokens=20, vocabulary=rows)
    weight.copy_(close)
    found = (hopper().statistics(hidden, rows, targets, 1.0, keep=False) for rows in (weight, close))
    return max(float((one - two).abs().max()) for one, two in zip(*(values[:4] for values in found), strict=True))


def into_given_buffer() -> dict[str, float]:
    """The gradient of weight added to a buffer of either dtype: its relative error."""
    hidden, weight, targets = inputs(torch.bfloat16)
    expected = naive(hidden, weight, targets)[3]
    found = {}
    for name, dtype in DTYPES.items():
        buffer = torch.full_like(weight, 3.0, dtype=dtype)
        logprobs, entropy = linear_logprob(
            hidden, weight.detach().requires_grad_(), targets, temperature=0.7, main_grad=buffer
        )
        slope, of_entropy = slopes(TOKENS)
        (slope * logprobs + of_entropy * entropy).sum().backward()
        found[name] = float((buffer - 3 - expected).norm() / (expected + 3).norm())
    return found


def refusals() -> dict[str, str]:
    """What is said of bad input."""
    found = {}
    for name, value in {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}.items():
        hidden, weight, targets = inputs(torch.float32, tokens=20)
        hidden[7, 3] = value
        found[name] = refusal(hidden, weight, targets)
    hidden, weight, targets = inputs(torch.float32, tokens=20)
    found["target"] = refusal(hidden, weight, targets.index_fill(0, torch.tensor([2]), VOCABULARY))
    return found


def refusal(*arguments: Tensor) -> str:
    try:
        linear_logprob(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def same_bits_alone() -> bool:
    """A row's log-prob does not depend on the rows beside it."""
    hidden, weight, targets = inputs(torch.bfloat16)
    together, alone = linear_logprob(hidden, weight, targets), linear_logprob(hidden[9:40], weight, targets[9:40])
    return all(torch.equal(one[9:40], two) for one, two in zip(together, alone, strict=True))


def masked_rows() -> float:
    """The gradient of hidden at tokens whose slopes are 0."""
    return float(fused(*inputs(torch.float32), "one_pass")[2][3::4].abs().max())


def no_tokens() -> list[float]:
    hidden, weight, targets = inputs(torch.float32, tokens=0)
    weight.requires_grad_()
    logprobs, _ = linear_logprob(hidden, weight, targets)
    logprobs.sum().backward()
    return [len(logprobs), float(weight.grad.abs().max())]


def distribution() -> dict[str, dict[str, float]]:
    """Three heads of unequal sizes against the oracle, over two blocks of the vocabulary: the largest difference of the
    values, in nats, and the relative errors of the gradients."""
    head.backend_for, triton_distribution.BLOCK = lambda _: hopper(), 128
    ragged = Case(40, (150, 155, 152), (48, 36, 40), 149)
    kinds = {
        "reverse": ragged,
        "forward": dataclasses.replace(ragged, divergence="forward_kl"),
        "clamp": dataclasses.replace(ragged, clamp=0.4),
        "lambda 1": dataclasses.replace(ragged, lambda_=1.0, sampled=False),
        "near": dataclasses.replace(ragged, rows=(150,) * 3, hidden=(48,) * 3, near=0.1),
    }
    found = {}
    for (name, dtype), (kind, case), mode in itertools.product(
        DTYPES.items(), kinds.items(), ("one_pass", "recompute")
    ):
        found[f"{name} {kind} {mode}"] = distribution_errors(dataclasses.replace(case, dtype=dtype), mode)
    return found


def distribution_errors(case: Case, mode: str) -> dict[str, float]:
    hidden, weight, targets, target = case.tensors()
    hidden, main_grad = hidden.requires_grad_(), torch.zeros(weight.shape)  # bf16 would be truncated once more
    keywords = {"mode": mode, "temperature": TEMPERATURE, "main_grad": main_grad}
    result = linear_distribution_loss(
        hidden, weight.requires_grad_(), targets, case.loss, rows_of(case.tokens), target, **keywords
    )
    result.loss.backward()
    expected, *gradients = case.expected()
    pairs = zip(values_of(result).values(), values_of(expected).values(), strict=True)
    of_gradients = map(relative, (hidden.grad, main_grad), gradients)
    errors = max(float((one - two).abs().max()) for one, two in pairs), *of_gradients
    return dict(zip(("values", "grad_hidden", "grad_weight"), errors, strict=True))


def distribution_of_nothing() -> float:
    """The loss of no tokens."""
    case = Case(0, (40, 40, 40), (8, 8, 8), 40, dtype=torch.float32)
    hidden, weight, targets, target = case.tensors()
    return float(linear_distribution_loss(hidden, weight, targets, case.loss, rows_of(0), target).loss)


if __name__ == "__main__":
    head.backend_for, triton_products.by_cublas = lambda _: hopper(), on_this_cpu
    cases = (
        against_oracle, without_entropy, described, far_above_the_sample, own_products, asked_of_cublas,
        far_below_zero, sure_of_its_target, beyond_32_bits, into_given_buffer, refusals,
        same_bits_alone, masked_rows, no_tokens, blackwell, distribution, distribution_of_nothing,
    )  # fmt: skip
    print(json.dumps({case.__name__: case() for case in cases}))
