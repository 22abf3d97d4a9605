"""The student's head beside those of its target, over the ranks that share the vocabulary: head.py's sibling.

Rows of ids that all heads have go to the backend together. The few that only some have, padding of unequal size, go
through each head alone: they count for its own log-probs, not for the divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.backend import DistributionStatistics, DistributionUpstream, Heads, Upstream
from megatron_gopd.kernels.distribution_values import DistributionValues
from megatron_gopd.kernels.head import Head, backend_for_all
from megatron_gopd.kernels.job import Job
from megatron_gopd.kernels.target import Target
from megatron_gopd.kernels.tree import merge, merge_sides, tree_merge, tree_sum


class Inputs(NamedTuple):
    """What goes into the heads for one chunk."""

    hidden: list[Tensor]  # [tokens, h_k] of student, teacher and, if there is one, reference
    log_sums: Tensor | None  # see Heads
    targets: Tensor  # [tokens] token ids


class Part(NamedTuple):
    """Rows of one part of this rank's shard."""

    start: int  # its first row in the shard
    shared: list[Tensor]  # rows of shared ids, as many of each head
    beyond: list[Tensor]  # the rows of each head that follow


@dataclass(frozen=True)
class DistributionHead:
    """What does not change from chunk to chunk."""

    head: Head  # the student's
    target: Target
    parts: list[Part]

    @classmethod
    def of(cls, job: Job, target: Target, weight: Tensor) -> DistributionHead:
        """weight: the student's shard, rows contiguous."""
        weights = [weight[: job.head.valid]]
        weights += [head.weight.detach().contiguous()[: head.rows] for head in target.heads.values()]
        count, shared = job.head.parts, target.shared_rows(job)
        width, parts = len(weight) // count, []
        for part in range(count):
            start, stop = part * width, (part + 1) * width
            stop = stop if part < count - 1 else max(map(len, weights))
            split = min(max(shared, start), stop)
            parts.append(Part(start, [rows[start:split] for rows in weights], [rows[split:stop] for rows in weights]))
        return cls(job.head, target, parts)

    def statistics(self, inputs: Inputs, keep: bool) -> tuple[DistributionValues, list]:
        """Of a chunk over the whole vocabulary, and what each part keeps. One collective."""
        found = [self._of_part(part, inputs, keep) for part in self.parts]
        merged = self._merged(torch.stack([torch.cat(of_part[:4]) for of_part in found]), len(inputs.hidden))
        if self.head.group is not None:
            of_ranks = merged.new_empty(self.head.group.size(), *merged.shape)
            dist.all_gather_into_tensor(of_ranks.view(-1), merged.view(-1), group=self.head.group)
            merged = self._merged(of_ranks, len(inputs.hidden))
        heads = len(inputs.hidden)
        statistics = DistributionStatistics(*merged.split([heads + 2, heads + 2, heads + 2, heads]))
        return DistributionValues.of(statistics, self._forward), [of_part.kept for of_part in found]

    @property
    def _forward(self) -> bool:
        return self.target.divergence == "forward_kl"

    def _merged(self, parts: Tensor, heads: int) -> Tensor:
        """[parts, 3 (heads + 2) + heads, tokens]: peak, total, weighted and target_logit -> the same of their union."""
        triple = parts[:, :-heads].unflatten(1, (3, heads + 2)).unbind(1)
        return torch.cat(
            [*tree_merge(triple, lambda one, other: merge_sides(one, other, self._forward)), parts[:, -heads:].amax(0)]
        )

    def _of_part(self, part: Part, inputs: Inputs, keep: bool) -> DistributionStatistics:
        """Rows: z over the shared ids; student, teacher and reference over all of their rows; D."""
        backend, first = backend_for_all(inputs.hidden), self.head.first + part.start
        heads = Heads(inputs.hidden, part.shared, self.target, inputs.log_sums)
        shared = len(part.shared[0])
        found = _nothing(heads)
        if shared:
            found = backend.distribution_statistics(heads, inputs.targets - first, self.head.temperature, keep)
        rows = [[of_row[0]] for of_row in found[:3]]
        target_logit = []
        for n, (hidden, beyond) in enumerate(zip(inputs.hidden, part.beyond, strict=True)):
            own, logit = tuple(of_row[n] for of_row in found[:3]), found.target_logit[n]
            if len(beyond):
                local = inputs.targets - (first + shared)
                alone = backend.statistics(hidden, beyond, local, self.head.temperature, keep=False)
                own, logit = merge(own, alone[:3]), torch.maximum(logit, alone.target_logit)
            for row, value in zip(rows, own, strict=True):
                row.append(value)
            target_logit.append(logit)
        columns = [torch.stack([*row, of_row[-1]]) for row, of_row in zip(rows, found[:3], strict=True)]
        return DistributionStatistics(*columns, torch.stack(target_logit), found.kept)

    def gradients(
        self,
        kept: list | None,
        inputs: Inputs,
        upstream: DistributionUpstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        """This rank's share of the chunk's gradient of the student's hidden; that of its weight into `grad_weight`."""
        backend, shares = backend_for_all(inputs.hidden), []
        for n, part in enumerate(self.parts):
            shared, local = len(part.shared[0]), inputs.targets - (self.head.first + part.start)
            of_weight = [None, None]
            if grad_weight is not None:
                rows = grad_weight[part.start : part.start + shared + len(part.beyond[0])]
                of_weight = [rows[:shared], rows[shared:]]
            share = torch.zeros_like(inputs.hidden[0], dtype=upstream.log_sum.dtype)
            if shared:
                heads = Heads(inputs.hidden, part.shared, self.target, inputs.log_sums)
                share = backend.distribution_gradients(
                    kept and kept[n], heads, local, self.head.temperature, upstream, of_weight[0], add
                )
            if len(part.beyond[0]) and upstream.grad_logprobs is not None:
                share = share + backend.gradients(
                    None, inputs.hidden[0], part.beyond[0], local - shared, self.head.temperature,
                    _of_logprob(upstream), of_weight[1], add,
                )  # fmt: skip
            elif of_weight[1] is not None and not add:
                of_weight[1].zero_()
            shares.append(share)
        return shares[0] if len(shares) == 1 else tree_sum(torch.stack(shares))


def _of_logprob(upstream: DistributionUpstream) -> Upstream:
    """Past the shared ids only the sampled token's log-prob has a gradient."""
    logprobs = upstream.logprobs
    return Upstream(upstream.own_log_sum, logprobs, torch.zeros_like(logprobs), upstream.grad_logprobs, None)


def _nothing(heads: Heads) -> DistributionStatistics:
    """Of no shared rows: a shard of padding alone."""
    hidden = heads.hidden[0]
    zero = hidden.new_zeros(len(heads.hidden) + 1, len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    return DistributionStatistics(zero - torch.inf, zero, zero, zero[:-1] - torch.inf)
