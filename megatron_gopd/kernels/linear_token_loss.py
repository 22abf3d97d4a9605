"""A token loss straight from hidden states and the LM head, with its gradients.

one_pass: the coefficient d loss / d logprob of a token is known as soon as its log-sum-exp is, so a chunk's gradients
follow at once from the exponentials of its forward pass: three GEMMs, z = X W^T, dX = G W, dW = G^T X, where computing
the logits again in the backward pass takes a fourth. It holds for every loss that is a sum over tokens of functions of
that token's log-prob and entropy; ratios of whole sequences or whitening need linear_logprob and autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.backend import Statistics, Upstream
from megatron_gopd.kernels.job import Job, Values, WeightGradient
from megatron_gopd.kernels.linear_logprob import linear_logprob
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows

TokenLossFunction = Callable[[Tensor, Tensor, TokenRows], TokenLoss]


class LinearTokenLoss(NamedTuple):
    loss: Tensor  # scalar; its gradient is the one the objective states
    logprobs: Tensor  # [tokens], detached
    entropy: Tensor  # [tokens], detached
    metrics: dict[str, Tensor]  # name -> [tokens]


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_loss: TokenLossFunction,
    rows: TokenRows,
    *,
    mode: Literal["one_pass", "recompute"] = "one_pass",
    temperature: float = 1.0,
    vocab_range: tuple[int, int] | None = None,
    group: dist.ProcessGroup | None = None,
    rows_per_rank: Sequence[int] | None = None,
    exact: int | None = None,
    main_grad: Tensor | None = None,
    main_grad_scale: float | None = None,
    check_finite: bool = True,
) -> LinearTokenLoss:
    """`token_loss(logprobs, entropy, rows)` of linear_logprob's values, differentiable in hidden and weight.

    Every other argument is linear_logprob's.

    Args:
        token_loss: in one_pass it is called once a chunk with that chunk's rows, so its value must be a sum over tokens
            and its metrics must be of single tokens.
        rows: what the objective knows of every token, of all slices, on every rank and on hidden's device.
        mode: one_pass holds the gradients until the backward pass, which multiplies them by its scalar; recompute holds
            nothing, takes a fourth GEMM, and accepts any token_loss.
        main_grad_scale: with one_pass, the scalar that the backward pass will multiply by. The gradient of weight is
            then added to main_grad in the FORWARD pass and never held; a schedule that repeats or drops a forward pass
            would corrupt it.

    Raises:
        ValueError: see linear_logprob.
        RuntimeError: a second backward pass in one_pass; a scalar other than main_grad_scale.
    """
    keywords = {"temperature": temperature, "vocab_range": vocab_range, "group": group, "rows_per_rank": rows_per_rank}
    if mode == "recompute":
        logprobs, entropy = linear_logprob(
            hidden, weight, targets, **keywords, exact=exact, main_grad=main_grad, check_finite=check_finite
        )
        result = token_loss(logprobs.detach(), entropy.detach(), rows)
        return LinearTokenLoss(
            with_gradient(result, logprobs, entropy), logprobs.detach(), entropy.detach(), result.metrics
        )
    if main_grad_scale is not None and main_grad is None:
        raise ValueError("main_grad_scale needs main_grad")
    job = Job.of(hidden, weight, targets, exact=exact, main_grad=main_grad, **keywords)
    one_pass = _Pass(job, token_loss, rows, main_grad_scale)
    loss = _OnePass.apply(hidden.contiguous(), weight.contiguous(), targets, one_pass)
    job.check(targets, one_pass.values, check_finite)
    return LinearTokenLoss(loss, one_pass.values.logprobs, one_pass.values.entropy, one_pass.metrics)


def with_gradient(result: TokenLoss, logprobs: Tensor, entropy: Tensor) -> Tensor:
    """A scalar whose value is the loss and whose gradient is the one the objective states."""
    surrogate = (logprobs * result.dloss_dlogprobs).sum()
    if result.dloss_dentropy is not None:
        surrogate = surrogate + (entropy * result.dloss_dentropy).sum()
    return surrogate + (result.loss - surrogate).detach()


class _Pass:
    """Forward and backward over all chunks at once; afterwards the gradients wait to be asked for."""

    def __init__(self, job: Job, token_loss: TokenLossFunction, rows: TokenRows, main_grad_scale: float | None):
        self.job, self.token_loss, self.rows, self.main_grad_scale = job, token_loss, rows, main_grad_scale
        self.values = job.values()
        self.metrics: dict[str, Tensor] = {}
        self.held: tuple[Tensor, Tensor | None] | None = None

    def run(self, hidden: Tensor, weight: Tensor, targets: Tensor, wanted: tuple[bool, bool]) -> Tensor:
        job = self.job
        cut = list(job.cut(job.tokens_per_chunk(weight)))
        loss = torch.zeros((), dtype=job.dtype, device=job.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = WeightGradient(weight, job, wanted[1], len(cut), hold=self.main_grad_scale is None)
        for chunk in cut:
            gathered = chunk.gather(hidden)
            statistics, kept = job.head.statistics(gathered, weight, targets[chunk.rows], keep=any(wanted))
            result, upstream = self._loss_of(chunk.rows, statistics)
            loss += result.loss
            if any(wanted):
                job.backward(chunk, kept, gathered, weight, targets, upstream, grad_weight, grad_hidden)
        if any(wanted):
            self.held = grad_hidden, grad_weight.to_return() if job.main_grad is None else grad_weight.buffer
        if not cut:
            result = self.token_loss(*self.values[1:], self.rows)
            loss, self.metrics = loss + result.loss, result.metrics
        return loss

    def _loss_of(self, rows: slice | Tensor, statistics: Statistics) -> tuple[TokenLoss, Upstream]:
        values = Values.of(statistics)
        self.values.put(rows, values)
        result = self.token_loss(values.logprobs, values.entropy, self.rows.select(rows))
        for name, metric in result.metrics.items():
            self.metrics.setdefault(name, metric.new_empty(self.job.tokens))[rows] = metric
        scale = 1.0 if self.main_grad_scale is None else self.main_grad_scale
        slopes = (
            None if slope is None else slope.to(self.job.dtype) * scale
            for slope in (result.dloss_dlogprobs, result.dloss_dentropy)
        )
        return result, Upstream(*values, *slopes)


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, one_pass):
        ctx.one_pass = one_pass
        return one_pass.run(hidden, weight, targets, ctx.needs_input_grad[:2])

    @staticmethod
    def backward(ctx, grad_loss):
        one_pass = ctx.one_pass
        if one_pass.held is None:
            raise RuntimeError("one_pass holds its gradients for one backward pass; use mode='recompute'")
        (grad_hidden, grad_weight), one_pass.held = one_pass.held, None
        main_grad = one_pass.job.main_grad
        if one_pass.main_grad_scale is not None:
            if float(grad_loss) != one_pass.main_grad_scale:
                raise RuntimeError(f"the gradient of the loss is {float(grad_loss)}, not {one_pass.main_grad_scale}")
            return grad_hidden, None, None, None
        if grad_loss.is_cuda or grad_loss.item() != 1:  # asking a GPU would wait for it
            grad_hidden = grad_hidden.mul_(grad_loss)
            grad_weight = grad_weight if grad_weight is None else grad_weight.mul_(grad_loss)
        if main_grad is not None and grad_weight is not None:
            main_grad.add_(grad_weight)
            grad_weight = None
        return grad_hidden, grad_weight, None, None
