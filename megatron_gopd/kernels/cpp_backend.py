"""The CPU backend in C++: float32, and bf16 where the CPU multiplies it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_gopd.kernels.backend import DistributionStatistics, DistributionUpstream, Heads, Statistics, Upstream

TILE_ROWS = 128  # of the vocabulary, that share one peak: cpp/tiles.h
POOL = 8  # buffers held between calls, at most


class CppBackend:
    def __init__(self, library: Any):
        """library: the loaded operators, torch.ops.megatron_gopd."""
        self._library = library
        self._dtypes = {torch.float32: library.takes_float32(), torch.bfloat16: library.takes_bfloat16()}
        self._pool: list[Tensor] = []  # fresh memory costs page faults, a tenth of the whole pass

    def takes(self, hidden: Tensor) -> bool:
        words = hidden.shape[1] * hidden.element_size() % 4 == 0  # bf16 is multiplied in pairs
        return self._dtypes.get(hidden.dtype, False) and words

    def statistics(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool) -> Statistics:
        buffer = self._buffer(self._library.kept_size(len(hidden), len(weight)), hidden.dtype) if keep else None
        columns, peaks = self._library.statistics(hidden, weight, targets.contiguous(), temperature, buffer)
        return Statistics(*columns, (buffer, peaks) if keep else None)

    def gradients(
        self,
        kept: tuple[Tensor, Tensor] | None,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        upstream: Upstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        buffer, peaks = kept or (None, hidden.new_empty(0, dtype=torch.float32))
        log_sum, logprobs, entropy, *slopes = (
            None if column is None else column.float().contiguous() for column in upstream
        )
        grad_hidden = self._library.gradients(
            buffer,
            peaks,
            hidden,
            weight,
            targets.contiguous(),
            logprobs,
            temperature,
            log_sum,
            entropy,
            *slopes,
            grad_weight,
            add,
        )
        self._give_back(buffer)
        return grad_hidden

    def distribution_statistics(
        self, heads: Heads, targets: Tensor, temperature: float, keep: bool
    ) -> DistributionStatistics:
        student, rows = heads.hidden[0], len(heads.weight[0])
        size = self._library.kept_size(len(student), rows)
        exp, other = (self._buffer(size, student.dtype) if keep else None for _ in range(2))
        peaks = student.new_empty((2, size // TILE_ROWS if keep else 0), dtype=torch.float32)
        columns = self._library.distribution_statistics(
            heads.hidden, heads.weight, targets.contiguous(), temperature, *_settings(heads), exp, other, peaks
        )
        count, kept = len(heads.hidden), (exp, other, peaks) if keep else None
        return DistributionStatistics(*columns.split([count + 1, count + 1, count + 1, count]), kept)

    def distribution_gradients(
        self,
        kept: tuple[Tensor, Tensor, Tensor] | None,
        heads: Heads,
        targets: Tensor,
        temperature: float,
        upstream: DistributionUpstream,
        grad_weight: Tensor | None,
        add: bool,
    ) -> Tensor:
        exp, other, peaks = kept or (None, None, heads.hidden[0].new_empty(0, dtype=torch.float32))
        columns = torch.stack([torch.zeros_like(upstream.gap) if column is None else column for column in upstream])
        grad_hidden = self._library.distribution_gradients(
            exp,
            other,
            peaks,
            heads.hidden,
            heads.weight,
            targets.contiguous(),
            temperature,
            *_settings(heads),
            columns.float(),
            grad_weight,
            add,
        )
        self._give_back(exp)
        self._give_back(other)
        return grad_hidden

    def _give_back(self, buffer: Tensor | None) -> None:
        if buffer is not None and len(self._pool) < POOL:
            self._pool.append(buffer)

    def _buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        while self._pool:
            buffer = self._pool.pop()
            if buffer.dtype == dtype and len(buffer) >= size:
                return buffer
        buffer = torch.empty(size, dtype=dtype)
        self._library.prefer_huge_pages(buffer)
        return buffer


def _settings(heads: Heads) -> tuple[float, float | None, bool, Tensor | None]:
    """lambda, clamp, forward, log_sums of the library's operators."""
    log_sums = None if heads.log_sums is None else heads.log_sums.float().contiguous()
    return heads.target.lambda_, heads.target.clamp, heads.target.divergence == "forward_kl", log_sums
