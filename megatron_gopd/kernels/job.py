"""One call of the LM-head kernel: what was asked, checked, and the steps both public functions share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels.backend import Statistics
from megatron_gopd.kernels.chunks import Chunk, cut, most_tokens, tokens_per_chunk
from megatron_gopd.kernels.head import Head
from megatron_gopd.kernels.tree import tree_sum

# (buffer, add) -> this rank's share of the chunk's gradient of hidden; that of weight into the buffer: see Backend
ChunkGradients = Callable[[Tensor | None, bool], Tensor]


@dataclass(frozen=True)
class Job:
    head: Head
    tokens: int  # over all ranks
    local_tokens: int
    rows_per_rank: Sequence[int] | None
    exact: int | None
    main_grad: Tensor | None
    dtype: torch.dtype  # of statistics
    device: torch.device
    kept_bytes: int | None = None  # that one_pass may keep of a chunk; None: as chunks.tokens_per_chunk has it

    @classmethod
    def of(
        cls, hidden, weight, targets, temperature, vocab_range, group, rows_per_rank, exact, main_grad, kept_bytes=None
    ) -> Job:
        """Raises ValueError for what does not fit."""
        if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
            raise ValueError(
                f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} must be [tokens, h] and [V, h]"
            )
        if hidden.dtype != weight.dtype:
            raise ValueError(f"hidden is {hidden.dtype} but weight is {weight.dtype}; cast one of them")
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} must be above 0")
        group = None if group is None or group.size() == 1 else group
        ranks, rank = (1, 0) if group is None else (group.size(), group.rank())
        if rows_per_rank is not None and (len(rows_per_rank) != ranks or rows_per_rank[rank] != len(hidden)):
            raise ValueError(f"rows_per_rank {list(rows_per_rank)} does not fit {len(hidden)} rows on rank {rank}")
        tokens = len(hidden) if rows_per_rank is None else sum(rows_per_rank)
        if targets.shape != (tokens,):
            raise ValueError(f"targets {tuple(targets.shape)} must be [tokens] = [{tokens}]")
        if main_grad is not None and main_grad.shape != weight.shape:
            raise ValueError(f"main_grad {tuple(main_grad.shape)} must be of weight's shape {tuple(weight.shape)}")
        first, last = vocab_range or (0, len(weight))
        if not 0 <= last - first <= len(weight):
            raise ValueError(f"vocab_range {(first, last)} does not fit {len(weight)} rows of weight")
        if exact is not None:
            _check_parts(exact, ranks, len(weight), rows_per_rank or [tokens])
        head = Head(temperature, first, last - first, group, 1 if exact is None else exact // ranks)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return cls(head, tokens, len(hidden), rows_per_rank, exact, main_grad, wide, hidden.device, kept_bytes)

    def cut(self, size: int | None = None) -> Iterator[Chunk]:
        """size: tokens of a chunk, over all ranks; default: as many as suit the device where nothing is kept."""
        size = most_tokens(self.device) if size is None else size
        group = self.head.group if self.rows_per_rank is not None else None
        parts = 1
        if self.exact is not None:
            parts = self.exact if group is None else self.exact // group.size()
        return cut(self.local_tokens, size, self.rows_per_rank, group, parts)

    def tokens_per_chunk(self, weight: Tensor, kept: int) -> int:
        """Of one_pass, which keeps `kept` numbers a logit. In exact mode it, too, must not depend on the ranks."""
        ranks = self.head.group.size() if self.exact is not None and self.head.group is not None else 1
        return tokens_per_chunk(len(weight) * ranks, kept * weight.element_size(), self.device, self.kept_bytes)

    def values(self) -> Values:
        """Of all tokens, to be filled chunk by chunk."""
        return Values(*torch.empty(3, self.tokens, dtype=self.dtype, device=self.device))

    def backward(
        self, chunk: Chunk, gradients: ChunkGradients, grad_weight: WeightGradient, grad_hidden: Tensor
    ) -> None:
        """The gradients of one chunk."""
        share = gradients(*grad_weight.next())
        if self.exact and self.head.group is not None and chunk.group is None:
            share = _whole_on_first_rank(share, self.head.group)
        chunk.scatter(share, grad_hidden, exact=self.exact is not None)

    @staticmethod
    def check(targets: Tensor, values: Values, finite: bool, whose: str = "") -> None:
        """Raises ValueError for a target in no shard, and, if asked, for a log-prob that is not finite.

        whose: the head's name and a space, where there are several. finite: if not, a GPU is not asked at all: the
            log-prob of a target in no shard is minus infinity there.
        """
        if values.logprobs.is_cuda and not finite:
            return  # the caller looks at all values later; to ask a GPU now would be to wait for it
        broken = ~torch.isfinite(values.logprobs + values.entropy)
        if not broken.any():
            return
        outside = (values.logprobs == -torch.inf) & torch.isfinite(values.log_sum)
        if outside.any():
            raise ValueError(f"target {int(targets[outside][0])} lies outside the {whose}vocabulary")
        if finite:
            rows = broken.nonzero()[:, 0].tolist()
            others = f" (and of {len(rows) - 1} more)" if len(rows) > 1 else ""
            raise ValueError(
                f"the {whose}log-prob of row {rows[0]}{others} is not finite: "
                "hidden or weight hold NaN or infinite values"
            )


class Values(NamedTuple):
    """Of every token, [tokens]."""

    log_sum: Tensor
    logprobs: Tensor
    entropy: Tensor

    @classmethod
    def of(cls, statistics: Statistics) -> Values:
        log_total = statistics.total.log()
        # not through log_sum: logits of 1e4 would leave a log-prob three digits
        logprobs = (statistics.target_logit - statistics.peak) - log_total
        return cls(statistics.peak + log_total, logprobs, log_total - statistics.weighted / statistics.total)


def put(columns: tuple[Tensor, ...], rows: slice | Tensor, found: tuple[Tensor, ...]) -> None:
    """What was found of some rows, into columns [..., tokens] of all."""
    for column, values in zip(columns, found, strict=True):
        column[..., rows] = values


class WeightGradient:
    """Where d loss / d weight goes, chunk after chunk: main_grad, or a buffer of its own that is written first."""

    def __init__(self, weight: Tensor, job: Job, wanted: bool, chunks: int, hold: bool = False):
        """hold: do not touch main_grad yet; the caller will add the buffer to it."""
        self.buffer: Tensor | None = None
        self.into_main_grad = job.main_grad is not None and not hold
        if wanted and self.into_main_grad:
            self.buffer = job.main_grad
        elif wanted:
            # several chunks, or a wider main_grad, are summed in float32
            narrow = chunks == 1 and job.main_grad is None
            self.buffer = torch.empty_like(weight, dtype=weight.dtype if narrow else job.dtype)
            self.buffer[job.head.valid if chunks else 0 :] = 0  # the chunks write the rest
        self._add = self.into_main_grad
        self._dtype = weight.dtype

    def next(self) -> tuple[Tensor | None, bool]:
        """The buffer, and whether it is to be added to rather than written over."""
        add, self._add = self._add, True
        return self.buffer, add

    def to_return(self) -> Tensor | None:
        return None if self.buffer is None or self.into_main_grad else self.buffer.to(self._dtype)


def _check_parts(exact: int, ranks: int, weight_rows: int, slices: Sequence[int]) -> None:
    if exact < 1 or exact & (exact - 1) or exact % ranks:
        raise ValueError(f"exact = {exact} must be a power of two that {ranks} ranks divide")
    if weight_rows % (exact // ranks):
        raise ValueError(f"exact = {exact}: pad the vocabulary so that {exact // ranks} divides {weight_rows} rows")
    if len(set(slices)) > 1 or slices[0] % (exact // len(slices)):
        raise ValueError(f"exact = {exact}: pad the tokens {list(slices)} to equal slices that {exact} parts divide")


def _whole_on_first_rank(share: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Shares that still sum to the gradient, but whose sum has only one order: all of it, and zeros."""
    shares = share.new_empty(group.size(), *share.shape)
    dist.all_gather_into_tensor(shares.view(-1), share.contiguous().view(-1), group=group)
    return tree_sum(shares) if group.rank() == 0 else torch.zeros_like(share)
