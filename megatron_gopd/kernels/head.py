"""One LM head over the ranks of a tensor-parallel group: its shards, their statistics merged, its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.backend import Backend, Statistics, Upstream, backend_for, torch_backend
from megatron_gopd.kernels.tree import tree_merge, tree_sum


@dataclass(frozen=True)
class Head:
    """What does not change from chunk to chunk, but the weight."""

    temperature: float
    first: int  # token id of the weight's first row
    valid: int  # rows of the weight that stand for tokens; the rest is padding
    group: dist.ProcessGroup | None  # over which the vocabulary is cut; None: it is not
    parts: int = 1  # equal parts of this shard that are computed on their own (more than one in exact mode only)

    def statistics(self, hidden: Tensor, weight: Tensor, targets: Tensor, keep: bool) -> tuple[Statistics, list]:
        """Statistics of a chunk over the whole vocabulary, and what each part keeps. One collective."""
        backend = backend_for(hidden)
        found = []
        for start, rows in self._shards(weight):
            local = targets - (self.first + start)
            found.append(
                backend.statistics(hidden, rows, local, self.temperature, keep) if len(rows) else _nothing(hidden)
            )
        columns = [torch.stack(column) for column in list(zip(*found, strict=True))[:4]]
        of_rank = torch.stack([*tree_merge(tuple(columns[:3])), columns[3].amax(0)])  # [4, tokens]
        if self.group is not None:
            of_ranks = of_rank.new_empty(self.group.size(), *of_rank.shape)
            dist.all_gather_into_tensor(of_ranks.view(-1), of_rank.view(-1), group=self.group)
            peak, total, weighted, target_logit = of_ranks.unbind(1)
            of_rank = torch.stack([*tree_merge((peak, total, weighted)), target_logit.amax(0)])
        return Statistics(*of_rank), [statistics.kept for statistics in found]

    def gradients(
        self,
        kept: list | None,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        upstream: Upstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        """This rank's share of the chunk's gradient of hidden; that of weight into `grad_weight`."""
        backend = backend_for(hidden)
        shares = []
        for part, (start, rows) in enumerate(self._shards(weight)):
            if not len(rows):
                shares.append(torch.zeros_like(hidden, dtype=upstream.log_sum.dtype))
                continue
            shares.append(
                backend.gradients(
                    kept and kept[part],
                    hidden,
                    rows,
                    targets - (self.first + start),
                    self.temperature,
                    upstream,
                    None if grad_weight is None else grad_weight[start : start + len(rows)],
                    add,
                )
            )
        return shares[0] if len(shares) == 1 else tree_sum(torch.stack(shares))

    def _shards(self, weight: Tensor) -> list[tuple[int, Tensor]]:
        """(first row, rows) of each part, without the padding."""
        width = len(weight) // self.parts
        return [
            (start, weight[start : max(start, min(start + width, self.valid))])
            for start in range(0, width * self.parts, width or 1)
        ] or [(0, weight)]


def _nothing(hidden: Tensor) -> Statistics:
    """The statistics of no rows: a shard of padding alone."""
    zero = hidden.new_zeros(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
    return Statistics(zero - torch.inf, zero, zero, zero - torch.inf)


def backend_for_all(hidden: list[Tensor]) -> Backend:
    """The backend that takes every head of a chunk; one that none is faster for, where they differ."""
    found = {type(backend): backend for backend in map(backend_for, hidden)}
    return next(iter(found.values())) if len(found) == 1 else torch_backend()
