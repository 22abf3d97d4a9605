"""Log-prob and entropy of the LM head at the target tokens, straight from hidden states; the logits are never whole.

The backward pass computes the logits again, chunk by chunk: four GEMMs, any upstream gradient. Where the loss is a
sum over tokens that the kernel may compute itself, linear_token_loss needs three.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.backend import Upstream
from megatron_gopd.kernels.job import Job, Values, WeightGradient, put


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    vocab_range: tuple[int, int] | None = None,
    group: dist.ProcessGroup | None = None,
    rows_per_rank: Sequence[int] | None = None,
    exact: int | None = None,
    main_grad: Tensor | None = None,
    check_finite: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each target and entropy of each distribution softmax(hidden @ weight.T / temperature).

    Args:
        hidden: [tokens, h] final hidden states, the same on every rank of `group`; with `rows_per_rank` this rank's
            slice of them.
        weight: [rows, h] this rank's rows of the LM head.
        targets: [tokens] global token ids, of all slices, on every rank.
        temperature: the sampling temperature.
        vocab_range: [first, last) token ids that `weight`'s rows stand for; rows past last - first are padding.
            Default: all rows, from 0.
        group: tensor-parallel group over which the vocabulary is cut; None: `weight` is the whole head.
        rows_per_rank: sequence parallelism: how many rows each rank of `group` holds, in order.
        exact: results whose bits do not depend on the size of `group`: the vocabulary and the tokens are computed in
            this many parts (a power of two that the group's size divides) and summed in a fixed order.
        main_grad: [rows, h] buffer to which the backward pass adds the gradient of weight, instead of returning it.
        check_finite: refuse log-probs that are not finite; else they come out as they are, and a GPU is not waited for
            (nor a target outside the vocabulary refused there: its log-prob is minus infinity).

    Returns:
        logprobs [tokens], entropy [tokens]: float32 (float64 for float64 inputs), nats, on every rank; both
        differentiable with respect to hidden and weight. The gradient of hidden is this rank's share, to be summed over
        `group`; with `rows_per_rank` it is whole.

    Raises:
        ValueError: a target outside the vocabulary, a log-prob that is not finite (with its row), or shapes or parts
            that do not fit.
    """
    job = Job.of(hidden, weight, targets, temperature, vocab_range, group, rows_per_rank, exact, main_grad)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    values = Values(*_LinearLogprob.apply(hidden, weight, targets, job))
    job.check(targets, values, check_finite)
    return values.logprobs, values.entropy


BLOCK = 8192  # vocabulary rows


def linear_log_softmax(
    hidden: Tensor,
    weight: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The whole distribution, for exact divergences in evaluation: [tokens, vocab_size] log-probs, float32.

    `weight` [rows, hidden] is this rank's shard of the head; rows past `vocab_size` are padding and dropped.
    """
    blocks = [hidden.float() @ rows.float().T for rows in weight.split(BLOCK)]  # widened a block at a time
    logits = torch.cat(blocks, dim=1) / temperature
    if group is not None and group.size() > 1:
        shards = [torch.empty_like(logits) for _ in range(group.size())]
        dist.all_gather(shards, logits.contiguous(), group=group)
        logits = torch.cat(shards, dim=1)
    return logits[:, :vocab_size].log_softmax(dim=-1)


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, targets, job):
        values = job.values()
        for chunk in job.cut():
            statistics, _ = job.head.statistics(chunk.gather(hidden), weight, targets[chunk.rows], keep=False)
            put(values, chunk.rows, Values.of(statistics))
        ctx.save_for_backward(hidden, weight, targets, *values)
        ctx.job = job
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(values.log_sum)
        return tuple(values)

    @staticmethod
    def backward(ctx, _, grad_logprobs, grad_entropy):
        hidden, weight, targets, log_sum, logprobs, entropy = ctx.saved_tensors
        job, cut = ctx.job, list(ctx.job.cut())
        grad_hidden = torch.empty_like(hidden)
        grad_weight = WeightGradient(weight, job, ctx.needs_input_grad[1], len(cut))
        grad_logprobs = torch.zeros_like(log_sum) if grad_logprobs is None else grad_logprobs
        columns = log_sum, logprobs, entropy, grad_logprobs, grad_entropy
        for chunk in cut:
            upstream = Upstream(*(None if column is None else column[chunk.rows] for column in columns))
            gradients = partial(job.head.gradients, None, chunk.gather(hidden), weight, targets[chunk.rows], upstream)
            job.backward(chunk, gradients, grad_weight, grad_hidden)
        return grad_hidden, grad_weight.to_return(), None, None
