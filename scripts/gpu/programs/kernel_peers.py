"""Who computes a log-prob of given tokens, or a loss of them, from hidden states and the weight of an LM head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Run = Callable[[], object]
ROWS = 16384  # of the vocabulary in one product of the bare GEMM


@dataclass
class Operands:
    """Of one shape, in bf16; main_grad is float32 and there already, as the trainer has it."""

    x: Tensor
    w: Tensor
    y: Tensor
    teacher: Tensor
    main_grad: Tensor
    logits: Tensor  # [tokens, ROWS], for the bare GEMM

    @classmethod
    def of(cls, tokens: int, hidden: int, words: int, device: str) -> Operands:
        torch.manual_seed(0)
        return cls(
            torch.randn(tokens, hidden, device=device).bfloat16(),
            (torch.randn(words, hidden, device=device) / hidden**0.5).bfloat16(),
            torch.randint(words, (tokens,), device=device),
            -12 * torch.rand(tokens, device=device),
            torch.zeros(words, hidden, device=device),
            torch.empty(tokens, min(ROWS, words), device=device, dtype=torch.bfloat16),
        )

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.x.detach().requires_grad_(), self.w.detach().requires_grad_()

    def gemm(self) -> None:
        """The logits, a block of the vocabulary at a time, into the same memory."""
        for rows in self.w.split(ROWS):
            torch.mm(self.x, rows.t(), out=self.logits[:, : len(rows)])


def forward(data: Operands) -> Iterator[tuple[str, Run]]:
    from megatron_gopd.kernels import linear_logprob

    def without_gradients(run: Run) -> Run:
        return torch.no_grad()(run)

    yield "ours", without_gradients(lambda: linear_logprob(data.x, data.w, data.y, check_finite=False))
    for name, log_prob in PEERS.items():
        yield name, without_gradients(lambda log_prob=log_prob: log_prob(data, data.x, data.w))


def both(data: Operands) -> Iterator[tuple[str, Run]]:
    """Forward and backward: of a loss with a coefficient a token, but for those that say mean CE."""
    yield "ours, into main_grad", ours(data, main_grad=data.main_grad, main_grad_scale=1.0)
    yield "ours, scale unknown", ours(data, main_grad=data.main_grad)
    yield "ours, a fresh dW", ours(data)
    yield "ours, recompute", ours(data, mode="recompute", main_grad=data.main_grad)
    yield "ours, every token judged by two heads", distribution(data)
    for name, log_prob in PEERS.items():
        yield name, through_autograd(data, log_prob)
    yield "Liger FLCE (mean CE)", lambda: liger_mean(data)
    yield "QuACK (mean CE)", lambda: quack_mean(data)


def ours(data: Operands, **how) -> Run:
    from megatron_gopd.kernels import linear_token_loss
    from megatron_gopd.objective import TokenRows, gopd_loss

    weights = torch.full_like(data.teacher, 1 / len(data.teacher))

    def run():
        rows = TokenRows(weights, None, data.teacher, data.teacher)
        loss = gopd_loss(1.0, None)
        linear_token_loss(*data.leaves(), data.y, loss, rows, check_finite=False, **how).loss.backward()

    return run


def distribution(data: Operands) -> Run:
    from megatron_gopd.kernels import Target, TargetHead, linear_distribution_loss
    from megatron_gopd.objective import DistributionLoss, TokenRows

    weights = torch.full_like(data.teacher, 1 / len(data.teacher))
    heads = [TargetHead(data.x, data.w, len(data.w)) for _ in range(2)]
    target = Target(*heads, 1.25, len(data.w))

    def loss(divergence, logprobs, entropy, rows):
        return DistributionLoss((rows.weights * divergence).sum(), rows.weights, None, {})

    def run():
        how = {"main_grad": data.main_grad, "main_grad_scale": 1.0, "check_finite": False}
        linear_distribution_loss(*data.leaves(), data.y, loss, TokenRows(weights), target, **how).loss.backward()

    return run


def through_autograd(data: Operands, log_prob) -> Run:
    """The same loss from a peer's log-probs."""

    def run():
        chosen = log_prob(data, *data.leaves())
        (chosen * (chosen.detach().float() - data.teacher) / len(data.teacher)).sum().backward()

    return run


def naive(data: Operands, x: Tensor, w: Tensor) -> Tensor:
    return (x @ w.t()).float().log_softmax(-1).gather(1, data.y[:, None])[:, 0]


def torchs_own(data: Operands, x: Tensor, w: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return -torch.nn.functional.linear_cross_entropy(x, w, data.y, reduction="none", options=options).float()


def liger(data: Operands, x: Tensor, w: Tensor) -> Tensor:
    from liger_kernel.chunked_loss.fused_linear_ppo import _ChunkedSelectiveLogProbFunction

    return _ChunkedSelectiveLogProbFunction.apply(x, w, data.y, None, 1.0, 4096)


def cut_cross_entropy(data: Operands, x: Tensor, w: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(x, w, data.y, reduction="none")


def liger_mean(data: Operands) -> None:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    x, w = data.leaves()
    LigerFusedLinearCrossEntropyLoss()(w, x, data.y).backward()


def quack_mean(data: Operands) -> None:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    chunked_linear_cross_entropy(*data.leaves(), data.y, chunk_size=4096, reduction="mean").backward()


PEERS = {
    "logits in memory": naive,
    "cut-cross-entropy": cut_cross_entropy,
    "Liger selective": liger,
    "torch's linear_cross_entropy": torchs_own,
}
