"""Forward and backward over all chunks at once: what linear_token_loss and linear_distribution_loss share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from megatron_gopd.kernels.chunks import Chunk
from megatron_gopd.kernels.job import Job, WeightGradient, put
from megatron_gopd.objective.distribution_loss import DistributionLoss
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows

Result = TokenLoss | DistributionLoss
GradientsOf = Callable[[Result, Tensor | None, bool], Tensor]  # job.ChunkGradients, once the loss is known


class Pass(ABC):
    """One call in mode one_pass. Its gradients wait to be asked for, by one backward pass.

    Attributes:
        values: of every token, columns [..., tokens].
        metrics: name -> [tokens].
    """

    kept = 1  # numbers a logit that `forward` keeps for the gradients

    def __init__(self, job: Job, rows: TokenRows, main_grad_scale: float | None, values: tuple[Tensor, ...]):
        if main_grad_scale is not None and job.main_grad is None:
            raise ValueError("main_grad_scale needs main_grad")
        self.job, self.rows, self.main_grad_scale, self.values = job, rows, main_grad_scale, values
        self.metrics: dict[str, Tensor] = {}
        self.held: tuple[Tensor, Tensor | None] | None = None

    @abstractmethod
    def forward(
        self, chunk: Chunk, hidden: Tensor, weight: Tensor, keep: bool
    ) -> tuple[tuple[Tensor, ...], GradientsOf]:
        """The values of a chunk's tokens, and how their gradients follow if they were kept."""

    @abstractmethod
    def loss(self, values: tuple[Tensor, ...], rows: TokenRows) -> Result: ...

    def apply(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """The loss, differentiable in hidden and weight."""
        return _OnePass.apply(hidden.contiguous(), weight.contiguous(), self)

    def run(self, hidden: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> Tensor:
        job = self.job
        cut = list(job.cut(job.tokens_per_chunk(weight, self.kept)))
        loss = torch.zeros((), dtype=job.dtype, device=job.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = WeightGradient(weight, job, wanted[1], len(cut), hold=self.main_grad_scale is None)
        for chunk in cut:
            values, gradients = self.forward(chunk, hidden, weight, any(wanted))
            put(self.values, chunk.rows, values)
            result = self.loss(values, self.rows.select(chunk.rows))
            loss += result.loss
            for name, metric in result.metrics.items():
                self.metrics.setdefault(name, metric.new_empty(job.tokens))[chunk.rows] = metric
            if any(wanted):
                job.backward(chunk, partial(gradients, result), grad_weight, grad_hidden)
            del gradients  # with what it kept, before the next chunk keeps as much
        if any(wanted):
            self.held = grad_hidden, grad_weight.to_return() if job.main_grad is None else grad_weight.buffer
        if not cut:
            result = self.loss(self.values, self.rows)
            loss, self.metrics = loss + result.loss, result.metrics
        return loss

    def scaled(self, slope: Tensor | None) -> Tensor | None:
        """A slope of the loss, times the scalar of the backward pass if that is known."""
        if slope is None:
            return None
        return slope.to(self.job.dtype) * (1.0 if self.main_grad_scale is None else self.main_grad_scale)


def stated(loss: Tensor, *slopes: tuple[Tensor, Tensor | None]) -> Tensor:
    """A scalar whose value is the loss and whose gradient is the one stated: pairs of values and d loss / d values."""
    surrogate = sum((values * slope).sum() for values, slope in slopes if slope is not None)
    return surrogate + (loss - surrogate).detach()


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, one_pass):
        ctx.one_pass = one_pass
        return one_pass.run(hidden, weight, ctx.needs_input_grad[:2])

    @staticmethod
    def backward(ctx, grad_loss):
        one_pass = ctx.one_pass
        if one_pass.held is None:
            raise RuntimeError("one_pass holds its gradients for one backward pass; use mode='recompute'")
        (grad_hidden, grad_weight), one_pass.held = one_pass.held, None
        main_grad = one_pass.job.main_grad
        if one_pass.main_grad_scale is not None:
            _refuse_another(grad_loss, one_pass.main_grad_scale)
            return grad_hidden, None, None
        if grad_loss.is_cuda or grad_loss.item() != 1:  # asking a GPU would wait for it
            grad_hidden = grad_hidden.mul_(grad_loss)
            grad_weight = grad_weight if grad_weight is None else grad_weight.mul_(grad_loss)
        if main_grad is not None and grad_weight is not None:
            main_grad.add_(grad_weight)
            grad_weight = None
        return grad_hidden, grad_weight, None


def _refuse_another(grad_loss: Tensor, scale: float) -> None:
    """Raises RuntimeError: `grad_loss` is not `scale`; on a GPU when it gets there, and nobody waits for it."""
    if grad_loss.is_cuda:
        torch._assert_async(grad_loss == scale, f"the gradient of the loss is not {scale}")
    elif float(grad_loss) != scale:
        raise RuntimeError(f"the gradient of the loss is {float(grad_loss)}, not {scale}")
