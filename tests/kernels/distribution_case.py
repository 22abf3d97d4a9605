"""Three heads of unequal sizes, a loss that uses all that a distribution loss may, and the oracle in float64."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_gopd.kernels import LinearDistributionLoss, Target, TargetHead, naive_distribution_loss
from megatron_gopd.objective import DistributionLoss, TokenRows

TEMPERATURE = 0.7


@dataclass
class Case:
    """`near`: how far the targets' logits are from the student's, of which the standard deviation is 2."""

    tokens: int = 9
    rows: tuple[int, int, int] = (23, 25, 24)  # of student, teacher, reference
    hidden: tuple[int, int, int] = (6, 4, 10)
    shared: int = 21
    lambda_: float = 1.25
    clamp: float | None = None
    divergence: str = "reverse_kl"
    sampled: bool = True  # the loss uses the log-prob of the sampled token too
    near: float | None = None
    dtype: torch.dtype = torch.float64

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Target]:
        """hidden, weight, targets, target; rows of the weights past `rows` are not made."""
        generator = torch.Generator().manual_seed(self.tokens + sum(self.rows))
        states, weights = [], []
        for rows, size in zip(self.rows, self.hidden, strict=True):
            states.append(torch.randn(self.tokens, size, generator=generator, dtype=torch.float64))
            weights.append(2 * size**-0.5 * torch.randn(rows, size, generator=generator, dtype=torch.float64))
        if self.near is not None:  # the student's head, some way off
            for n in (1, 2):
                noise = torch.randn(weights[0].shape, generator=generator, dtype=torch.float64)
                states[n], weights[n] = states[0], weights[0] + self.near * self.hidden[0] ** -0.5 * noise
        states, weights = ([tensor.to(self.dtype) for tensor in tensors] for tensors in (states, weights))
        targets = torch.arange(self.tokens) * (self.shared - 1) // max(self.tokens - 1, 1)
        if self.tokens > 1:
            targets[0] = min(map(len, weights)) - 1  # past the shared ids, where there are more
        heads = [TargetHead(x, w, len(w), _log_sum(x, w)) for x, w in zip(states[1:], weights[1:], strict=True)]
        reference = None if self.lambda_ == 1 else heads[1]
        target = Target(heads[0], reference, self.lambda_, self.shared, self.clamp, self.divergence)
        return states[0], weights[0], targets, target

    def loss(self, divergence: Tensor, logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> DistributionLoss:
        weights = rows.weights.to(divergence.dtype)
        gain = 0.3 * weights * (rows.teacher_logprobs - logprobs) if self.sampled else None
        value = (weights * divergence).sum()
        return DistributionLoss(
            value if gain is None else value + gain.sum(), weights, gain, {"spread": divergence - entropy}
        )

    def expected(self, upstream: float = 1.0) -> tuple[LinearDistributionLoss, Tensor, Tensor]:
        """The oracle in float64 and its gradients, from the same (rounded) inputs."""
        hidden, weight, targets, target = self.tensors()
        hidden, weight = (tensor.double().requires_grad_() for tensor in (hidden, weight))
        found = naive_distribution_loss(
            hidden, weight, targets, self.loss, rows_of(self.tokens), double(target), temperature=TEMPERATURE
        )
        return found, *torch.autograd.grad(upstream * found.loss, (hidden, weight))


def rows_of(tokens: int) -> TokenRows:
    return TokenRows(torch.linspace(0.1, 2, tokens))


def double(target: Target) -> Target:
    wider = {
        name: dataclasses.replace(head, hidden=head.hidden.double(), weight=head.weight.double())
        for name, head in target.heads.items()
    }
    return dataclasses.replace(target, **wider)


def values_of(found: LinearDistributionLoss) -> dict[str, Tensor]:
    names = "divergence logprobs entropy teacher_logprobs reference_logprobs".split()
    return {name: getattr(found, name) for name in names if getattr(found, name) is not None}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def _log_sum(hidden: Tensor, weight: Tensor) -> Tensor:
    return (hidden.double() @ weight.double().T / TEMPERATURE).logsumexp(-1)
