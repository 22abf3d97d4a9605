"""Logits of a few ids a token, from hidden states and the rows of the LM head that these ids ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.chunks import Chunk
from megatron_gopd.kernels.job import Job

PIECE_BYTES = 2**26  # of the rows of the head that are gathered at a time; a few such buffers are there at once


def linear_logits(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    vocab_range: tuple[int, int] | None = None,
    group: dist.ProcessGroup | None = None,
    rows_per_rank: Sequence[int] | None = None,
    main_grad: Tensor | None = None,
) -> Tensor:
    """hidden[t] . weight[id] / temperature for each token's own ids, 2 k h operations a token over all ranks.

    Every other argument is linear_logprob's.

    Args:
        ids: [tokens, k] global token ids, of all slices, on every rank, in host memory; one that no rank has a row
            for, such as -1, gets 0.

    Returns:
        [tokens, k] float32 (float64 for float64 inputs), on every rank; differentiable in hidden and weight as
        linear_logprob's results are.
    """
    job = Job.of(hidden, weight, ids[:, 0], temperature, vocab_range, group, rows_per_rank, None, main_grad)
    return _LinearLogits.apply(hidden.contiguous(), weight.contiguous(), ids, job)


class _LinearLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, ids, job):
        found = torch.zeros(ids.shape, dtype=job.dtype, device=job.device)
        for chunk in job.cut():
            states, of_chunk = chunk.gather(hidden).to(job.dtype), found[chunk.rows]
            for token, column, row in _pieces(ids, chunk, job, weight):
                of_chunk[token, column] = (states[token] * weight[row].to(job.dtype)).sum(dim=1)
            found[chunk.rows] = of_chunk / job.head.temperature
        if job.head.group is not None:
            dist.all_reduce(found, group=job.head.group)
        ctx.save_for_backward(hidden, weight, ids)
        ctx.job = job
        return found

    @staticmethod
    def backward(ctx, slopes):
        (hidden, weight, ids), job = ctx.saved_tensors, ctx.job
        grad_hidden, grad_weight = torch.empty_like(hidden), job.main_grad
        if grad_weight is None and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=job.dtype)
        for chunk in job.cut():
            states, of_chunk = chunk.gather(hidden).to(job.dtype), slopes[chunk.rows] / job.head.temperature
            share = torch.zeros_like(states)
            for token, column, row in _pieces(ids, chunk, job, weight):
                slope = of_chunk[token, column][:, None]
                share.index_add_(0, token, slope * weight[row].to(job.dtype))
                if grad_weight is not None:
                    grad_weight.index_add_(0, row, (slope * states[token]).to(grad_weight.dtype))
            chunk.scatter(share, grad_hidden, exact=False)
        to_return = grad_weight.to(weight.dtype) if grad_weight is not None and job.main_grad is None else None
        return grad_hidden, to_return, None, None


def _pieces(ids: Tensor, chunk: Chunk, job: Job, weight: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(token of the chunk, column, row of weight) of the ids that this rank has rows for, some at a time."""
    rows = ids[chunk.rows] - job.head.first
    tokens, columns = ((rows >= 0) & (rows < job.head.valid)).nonzero(as_tuple=True)  # on the host: a GPU would wait
    step = max(1, PIECE_BYTES // (weight.shape[1] * job.dtype.itemsize))
    for token, column in zip(tokens.split(step), columns.split(step), strict=True):
        yield tuple(each.to(job.device) for each in (token, column, rows[token, column]))
