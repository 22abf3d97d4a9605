"""The LM-head kernels against float64 over ragged shapes: kernel_cases.py DEVICE QUICK(0|1) FILE

Writes [[name, figures, bounds], ...], figures by what they are of; a case that raised has the error as its figures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_gopd.kernels import linear_logprob, linear_token_loss
from megatron_gopd.objective import TokenRows, gopd_loss

LAMBDA = 1.25
# of log-prob and entropy (absolute, nats), of grad_hidden and grad_weight (relative to the norm of the right one)
BOUNDS = {torch.bfloat16: (5e-5, 2e-4, 8e-3, 8e-3), torch.float32: (2e-5, 2e-5, 1e-4, 1e-4)}
NAMES = ("log-prob", "entropy", "dX", "dW")
OF_A_GEMM = 2  # times the error of a plain GEMM are allowed too: the tensor cores' own sums round
SPREAD = 3.0  # of the logits


@dataclass(frozen=True)
class Shape:
    tokens: int
    hidden: int
    words: int
    temperature: float
    dtype: torch.dtype

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind} T{self.tokens} h{self.hidden} V{self.words} temperature {self.temperature}"


SMALL = [(1, 64, 77), (63, 96, 333), (150, 100, 333)]
LARGE = [(513, 2560, 32001), (700, 896, 151936), (257, 4096, 128256), (2049, 1024, 151936)]
OF_A_QUICK = [(63, 96, 333), (513, 2560, 32001), (257, 4096, 128256)]
MOST_FLOAT32 = 2e7  # logits: float32 is multiplied without tensor cores


def shapes(device: str, quick: bool) -> Iterator[Shape]:
    """Every shape at one temperature, the small ones at both."""
    every = OF_A_QUICK if quick else SMALL + LARGE
    for number, (tokens, hidden, words) in enumerate(every if device == "cuda" else SMALL):
        small = (tokens, hidden, words) in SMALL
        for temperature in (1.0, 0.7) if small else ((1.0, 0.7)[number % 2],):
            for dtype in BOUNDS:
                if dtype == torch.bfloat16 or tokens * words <= MOST_FLOAT32:
                    yield Shape(tokens, hidden, words, temperature, dtype)


@dataclass
class Problem:
    """Inputs, and float64's answers."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    rows: TokenRows
    logprobs: Tensor
    entropy: Tensor
    grad_hidden: Tensor
    grad_weight: Tensor

    @classmethod
    def of(cls, shape: Shape, device: str) -> Problem:
        """Teacher and reference are a nat of noise around the student."""
        x = torch.randn(shape.tokens, shape.hidden, device=device).to(shape.dtype)
        w = (torch.randn(shape.words, shape.hidden, device=device) * SPREAD / shape.hidden**0.5).to(shape.dtype)
        y = torch.randint(shape.words, (shape.tokens,), device=device)
        x64, w64 = x.double().requires_grad_(), w.double().requires_grad_()
        law = torch.log_softmax(x64 @ w64.t() / shape.temperature, -1)
        entropy, chosen = -(law.exp() * law).sum(-1).detach(), law.gather(1, y[:, None])[:, 0]
        noise = torch.randn(2, shape.tokens, device=device, dtype=torch.float64)
        teacher, reference = (chosen.detach() + noise).float()
        advantage = LAMBDA * (teacher.double() - reference.double()) - (chosen.detach() - reference.double())
        (-(advantage * chosen).sum() / shape.tokens).backward()
        weights = torch.full((shape.tokens,), 1 / shape.tokens, device=device)
        rows = TokenRows(weights, None, teacher, reference)
        return cls(x, w, y, rows, chosen.detach(), entropy, x64.grad, w64.grad)


def errors(shape: Shape, device: str) -> tuple[list[float], list[float]]:
    """Of the four NAMES, gradients the worst of all ways to compute them; and their bounds."""
    problem = Problem.of(shape, device)
    x, w, y = problem.hidden, problem.weight, problem.targets
    with torch.no_grad():
        logprobs, entropy = linear_logprob(x, w, y, temperature=shape.temperature)
        law = torch.log_softmax(plain_logits(x, w).double() / shape.temperature, -1)
    values = [apart(logprobs, problem.logprobs), apart(entropy, problem.entropy)]
    plain = apart(law.gather(1, y[:, None])[:, 0], problem.logprobs)
    bounds = BOUNDS[shape.dtype]
    return [*values, *gradient_errors(problem, shape)], [max(bounds[0], OF_A_GEMM * plain), *bounds[1:]]


def gradient_errors(problem: Problem, shape: Shape) -> list[float]:
    """Of grad_hidden and grad_weight."""
    of_hidden, of_weight = [], []
    for mode in ("one_pass", "recompute"):
        for buffer in (None, torch.zeros_like(problem.weight, dtype=torch.float32)):
            x, w = problem.hidden.detach().requires_grad_(), problem.weight.detach().requires_grad_()
            how = {"mode": mode, "temperature": shape.temperature, "main_grad": buffer}
            loss = linear_token_loss(x, w, problem.targets, gopd_loss(LAMBDA, None), problem.rows, **how).loss
            loss.backward()
            of_hidden.append(relative(x.grad, problem.grad_hidden))
            of_weight.append(relative(w.grad if buffer is None else buffer, problem.grad_weight))
    return [max(of_hidden), max(of_weight)]


def plain_logits(x: Tensor, w: Tensor) -> Tensor:
    """One GEMM into float32."""
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, w.t(), out_dtype=torch.float32)
    return x.float() @ w.float().t()


def apart(got: Tensor, right: Tensor) -> float:
    return (got.double() - right).abs().max().item()


def relative(got: Tensor, right: Tensor) -> float:
    return ((got.double() - right).norm() / right.norm().clamp_min(1e-30)).item()


def repeats(device: str) -> float:
    """How far two equal calls are from each other: log-probs, entropy, gradients."""
    problem = Problem.of(Shape(150, 128, 1003, 1.0, torch.bfloat16), device)
    found = []
    for _ in range(2):
        x, w = problem.hidden.detach().requires_grad_(), problem.weight.detach().requires_grad_()
        made = linear_token_loss(x, w, problem.targets, gopd_loss(LAMBDA, None), problem.rows)
        made.loss.backward()
        found.append([made.logprobs, made.entropy, x.grad, w.grad])
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(*found, strict=True))


def main(device: str, quick: bool, file: Path) -> None:
    torch.manual_seed(20)
    found: list = []
    for shape in shapes(device, quick):
        try:
            got, bounds = errors(shape, device)
            found.append([str(shape), *(dict(zip(NAMES, values, strict=True)) for values in (got, bounds))])
        except Exception as error:
            found.append([str(shape), f"{type(error).__name__}: {error}", {}])
        file.write_text(json.dumps(found))
        if device == "cuda":
            torch.cuda.empty_cache()
    found.append(["two equal calls", {"apart": repeats(device)}, {"apart": 0.0}])
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "1", Path(sys.argv[3]))
