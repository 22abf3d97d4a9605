"""The LM-head kernel as a GPU runs it, for fake tensors: its products are counted, its buffers held."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_gopd.kernels.backend import DistributionStatistics, DistributionUpstream, Heads, Statistics, Upstream
from megatron_gopd.kernels.workspace import gpu_mixture_bytes, gpu_statistics_bytes
from megatron_gopd.plan.counts import Gemm
from megatron_gopd.plan.ledger import Ledger


class PlannedHead:
    """A kernels.backend.Backend: z = X W^T in one pass over the vocabulary, dX = G W, dW = G^T X."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger

    def statistics(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool) -> Statistics:
        """The exponentials are kept in the dtype of `hidden` for the gradients; the logits are never held."""
        self._product(hidden, weight)
        columns = hidden.new_empty(4, len(hidden), dtype=_wide(hidden))
        return Statistics(*columns, hidden.new_empty(len(hidden), len(weight)) if keep else None)

    def gradients(
        self,
        kept: object | None,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        upstream: Upstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        if kept is None:
            self._product(hidden, weight)
        return self._gradients(hidden, weight, grad_weight)

    def distribution_statistics(
        self, heads: Heads, targets: Tensor, temperature: float, keep: bool
    ) -> DistributionStatistics:
        """A product a head; two numbers a logit are kept: exp z, and z - D or exp D; and statistics of its parts."""
        student, count, rows = heads.hidden[0], len(heads.hidden), len(heads.weight[0])
        statistics = _work(student, gpu_statistics_bytes(len(student), rows, count - 1))
        kept = (student.new_empty(2, len(student), rows), statistics) if keep else None
        self._products(heads)
        columns = student.new_empty(4 * count + 3, len(student), dtype=_wide(student))
        return DistributionStatistics(*columns.split([count + 1, count + 1, count + 1, count]), kept)

    def distribution_gradients(
        self,
        kept: object | None,
        heads: Heads,
        targets: Tensor,
        temperature: float,
        upstream: DistributionUpstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        if kept is None:
            self._products(heads)
        return self._gradients(heads.hidden[0], heads.weight[0], grad_weight)

    def _gradients(self, hidden: Tensor, weight: Tensor, grad_weight: Tensor | None) -> Tensor:
        tokens, width, rows = len(hidden), hidden.shape[1], len(weight)
        self._ledger.gemm(Gemm(1, tokens, rows, width))
        if grad_weight is not None:
            self._ledger.gemm(Gemm(1, rows, tokens, width))
        return hidden.new_empty(tokens, width, dtype=_wide(hidden))

    def _products(self, heads: Heads) -> None:
        """With D of a block of the vocabulary in memory."""
        student = heads.hidden[0]
        mixture = _work(student, gpu_mixture_bytes(len(student), len(heads.weight[0])))
        for hidden, weight in zip(heads.hidden, heads.weight, strict=True):
            self._product(hidden, weight)
        del mixture

    def _product(self, hidden: Tensor, weight: Tensor) -> None:
        self._ledger.gemm(Gemm(1, len(hidden), hidden.shape[1], len(weight)))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _work(like: Tensor, size: int) -> Tensor:
    return like.new_empty(size, dtype=torch.uint8)
