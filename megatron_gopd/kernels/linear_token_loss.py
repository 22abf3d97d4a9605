"""A token loss straight from hidden states and the LM head, with its gradients.

one_pass: the coefficient d loss / d logprob of a token is known as soon as its log-sum-exp is, so a chunk's gradients
follow at once from the exponentials of its forward pass: three GEMMs, z = X W^T, dX = G W, dW = G^T X, where computing
the logits again in the backward pass takes a fourth. It holds for every loss that is a sum over tokens of functions of
that token's log-prob and entropy; ratios of whole sequences or whitening need linear_logprob and autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.backend import Upstream
from megatron_gopd.kernels.chunks import Chunk
from megatron_gopd.kernels.job import Job, Values
from megatron_gopd.kernels.linear_logprob import linear_logprob
from megatron_gopd.kernels.one_pass import GradientsOf, Pass, stated
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
    kept_bytes: int | None = None,
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
        kept_bytes: of a chunk on a rank, for what one_pass keeps of its logits; default: what suits the device.

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
        loss = with_gradient(result, logprobs, entropy)
        return LinearTokenLoss(loss, logprobs.detach(), entropy.detach(), result.metrics)
    job = Job.of(hidden, weight, targets, exact=exact, main_grad=main_grad, kept_bytes=kept_bytes, **keywords)
    one_pass = _TokenPass(job, targets, token_loss, rows, main_grad_scale)
    loss = one_pass.apply(hidden, weight)
    job.check(targets, one_pass.values, check_finite)
    return LinearTokenLoss(loss, one_pass.values.logprobs, one_pass.values.entropy, one_pass.metrics)


def with_gradient(result: TokenLoss, logprobs: Tensor, entropy: Tensor) -> Tensor:
    """A scalar whose value is the loss and whose gradient is the one the objective states."""
    return stated(result.loss, (logprobs, result.dloss_dlogprobs), (entropy, result.dloss_dentropy))


class _TokenPass(Pass):
    def __init__(self, job: Job, targets: Tensor, token_loss: TokenLossFunction, rows: TokenRows, scale: float | None):
        super().__init__(job, rows, scale, job.values())
        self.targets, self.token_loss = targets, token_loss

    def forward(self, chunk: Chunk, hidden: Tensor, weight: Tensor, keep: bool) -> tuple[Values, GradientsOf]:
        gathered, targets = chunk.gather(hidden), self.targets[chunk.rows]
        statistics, kept = self.job.head.statistics(gathered, weight, targets, keep)
        values = Values.of(statistics)

        def gradients(result: TokenLoss, grad_weight: Tensor | None, add: bool) -> Tensor:
            slopes = self.scaled(result.dloss_dlogprobs), self.scaled(result.dloss_dentropy)
            upstream = Upstream(*values, *slopes)
            return self.job.head.gradients(kept, gathered, weight, targets, upstream, grad_weight, add)

        return values, gradients

    def loss(self, values: Values, rows: TokenRows) -> TokenLoss:
        return self.token_loss(values.logprobs, values.entropy, rows)
