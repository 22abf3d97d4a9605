"""A loss of whole distributions straight from hidden states and LM heads: every token of the vocabulary is judged.

Per token, with z the student's logits and D the target's (kernels/target.py), over the ids that all heads share:

    reverse_kl  KL(p || q) = E_p[z - D] - lse(z) + lse(D)     d / d z_v = p_v (s_v - E_p[s]),  s = z - D
    forward_kl  KL(q || p) = E_q[D - z] - lse(D) + lse(z)     d / d z_v = p_v - q_v

with p = softmax(z), q = softmax(D). one_pass: a GEMM a head, and two for the gradients; recompute: a GEMM a head more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.chunks import Chunk
from megatron_gopd.kernels.distribution_head import DistributionHead, Inputs
from megatron_gopd.kernels.distribution_values import DistributionValues
from megatron_gopd.kernels.job import Job, WeightGradient, put
from megatron_gopd.kernels.one_pass import GradientsOf, Pass, stated
from megatron_gopd.kernels.target import Target
from megatron_gopd.objective.distribution_loss import DistributionLoss
from megatron_gopd.objective.token_loss import TokenRows

DistributionLossFunction = Callable[[Tensor, Tensor, Tensor, TokenRows], DistributionLoss]


class LinearDistributionLoss(NamedTuple):
    loss: Tensor  # scalar; its gradient is the one the objective states
    divergence: Tensor  # [tokens], nats, detached, as all that follow
    logprobs: Tensor  # [tokens] of the sampled token, over each head's own rows
    entropy: Tensor  # [tokens] of the student
    teacher_logprobs: Tensor  # [tokens]
    reference_logprobs: Tensor | None  # [tokens]; None: no reference
    metrics: dict[str, Tensor]  # name -> [tokens]


def linear_distribution_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    distribution_loss: DistributionLossFunction,
    rows: TokenRows,
    target: Target,
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
) -> LinearDistributionLoss:
    """`distribution_loss(divergence, logprobs, entropy, rows)`, differentiable in hidden and weight.

    Every argument but these is linear_token_loss's.

    Args:
        distribution_loss: in one_pass it is called once a chunk with that chunk's rows, as a token_loss is.
        rows: as there; teacher_logprobs and reference_logprobs are filled in before the call.
        target: the heads that are judged by, of which no gradient is taken; hidden sizes may differ, dtypes may not.
            Ids past the shared ones take no part in the divergence.

    Raises:
        ValueError: see linear_logprob; a head whose rows do not cover the shared ids, or what else does not fit.
        RuntimeError: see linear_token_loss.
    """
    job = Job.of(hidden, weight, targets, temperature, vocab_range, group, rows_per_rank, exact, main_grad, kept_bytes)
    target.check(job, hidden, weight)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    run = _DistributionPass(job, targets, distribution_loss, rows, main_grad_scale, target, weight)
    if mode == "recompute":
        divergence, logprobs = _Recompute.apply(hidden, weight, run)
        result = run.loss(run.values, rows)
        loss = stated(result.loss, (divergence, result.dloss_ddivergence), (logprobs, result.dloss_dlogprobs))
        run.metrics = result.metrics
    else:
        loss = run.apply(hidden, weight)
    values = run.values
    values.check(targets, check_finite)
    reference = values.logprobs[2] if len(values.logprobs) == 3 else None
    own = values.logprobs[0], values.entropies[0], values.logprobs[1], reference
    return LinearDistributionLoss(loss, values.divergence, *own, run.metrics)


class _DistributionPass(Pass):
    kept = 2  # exp(z) and z - D, or exp(z) and the other side's exponential

    def __init__(
        self,
        job: Job,
        targets: Tensor,
        distribution_loss: DistributionLossFunction,
        rows: TokenRows,
        main_grad_scale: float | None,
        target: Target,
        weight: Tensor,
    ):
        heads = 1 + len(target.heads)
        columns = torch.empty(4 + 3 * heads, job.tokens, dtype=job.dtype, device=job.device)
        values = DistributionValues(*columns[:4], *columns[4:].unflatten(0, (3, heads)))
        super().__init__(job, rows, main_grad_scale, values)
        self.targets, self.distribution_loss, self.target = targets, distribution_loss, target
        self.head, self.log_sums = DistributionHead.of(job, target, weight.detach()), target.log_sums

    def inputs(self, chunk: Chunk, hidden: Tensor) -> Inputs:
        states = [hidden, *(head.hidden.detach().contiguous() for head in self.target.heads.values())]
        log_sums = None if self.log_sums is None else self.log_sums[:, chunk.rows].to(self.job.dtype)
        return Inputs([chunk.gather(own) for own in states], log_sums, self.targets[chunk.rows])

    def forward(
        self, chunk: Chunk, hidden: Tensor, weight: Tensor, keep: bool
    ) -> tuple[DistributionValues, GradientsOf]:
        inputs = self.inputs(chunk, hidden)
        values, kept = self.head.statistics(inputs, keep)

        def gradients(result: DistributionLoss, grad_weight: Tensor | None, add: bool) -> Tensor:
            upstream = values.upstream(self.scaled(result.dloss_ddivergence), self.scaled(result.dloss_dlogprobs))
            return self.head.gradients(kept, inputs, upstream, grad_weight, add)

        return values, gradients

    def loss(self, values: DistributionValues, rows: TokenRows) -> DistributionLoss:
        own = values.divergence, values.logprobs[0], values.entropies[0]
        return self.distribution_loss(*own, values.rows(rows))


class _Recompute(torch.autograd.Function):
    """Divergence and log-probs of all tokens; the backward pass computes the logits again."""

    @staticmethod
    def forward(ctx, hidden, weight, run):
        for chunk in run.job.cut():
            put(run.values, chunk.rows, run.forward(chunk, hidden, weight, keep=False)[0])
        ctx.save_for_backward(hidden, weight)
        ctx.run = run
        return run.values.divergence.clone(), run.values.logprobs[0].clone()

    @staticmethod
    def backward(ctx, grad_divergence, grad_logprobs):
        (hidden, weight), run = ctx.saved_tensors, ctx.run
        cut = list(run.job.cut())
        grad_hidden = torch.empty_like(hidden)
        grad_weight = WeightGradient(weight, run.job, ctx.needs_input_grad[1], len(cut))
        for chunk in cut:
            values = DistributionValues(*(column[..., chunk.rows] for column in run.values))
            upstream = values.upstream(grad_divergence[chunk.rows], grad_logprobs[chunk.rows])
            gradients = partial(run.head.gradients, None, run.inputs(chunk, hidden), upstream)
            run.job.backward(chunk, gradients, grad_weight, grad_hidden)
        return grad_hidden, grad_weight.to_return(), None
