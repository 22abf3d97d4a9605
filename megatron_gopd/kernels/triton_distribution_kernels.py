"""The GPU kernels of a distribution loss, beside those of triton_kernels.py, whose rules they keep.

A target's head goes first, then the next, then the student's: D is a [tokens, columns] float32 buffer over a block of
the vocabulary, in which the teacher leaves its logits and the reference the mixture.
"""

from __future__ import annotations

import triton
import triton.language as tl

from megatron_gopd.kernels.triton_kernels import _logits, _quarters, _statistics_of_part, _store_tile, _tile


@triton.jit
def target_kernel(
    hidden, weight, target_ptr, peak_ptr, total_ptr, weighted_ptr, target_logit_ptr, mixture_ptr, log_sum_ptr,
    tokens, inner, columns, hidden_stride, weight_stride, mixture_stride, first, inverse_temperature, lambda_, bound,
    STATISTICS: tl.constexpr, MIXED: tl.constexpr, CLAMP: tl.constexpr,
    DESCRIBED: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A target head's logits into `mixture`, or, MIXED, D from those that are there and these; target `first` is
    column 0. STATISTICS: also those of statistics_kernel."""
    row, column = _tile(tl.program_id(0), tokens, columns, BM, BN)
    z = inverse_temperature * _logits(
        hidden, weight, row, column, tokens, columns, inner, hidden_stride, weight_stride, DESCRIBED, EVEN, BM, BN, BK
    )
    i = row + tl.arange(0, BM)
    stored = i < tokens
    target = tl.load(target_ptr + i, mask=stored, other=-1) - first
    quarters = _quarters(z, BM, BN)
    for n in tl.static_range(4):
        start = column + n * (BN // 4)
        if start < columns:
            part, j = quarters[n], start + tl.arange(0, BN // 4)
            logit = tl.max(tl.where(j[None, :] == target[:, None], part, -float("inf")), 1)
            here = (target >= start) & (target < tl.minimum(start + BN // 4, columns))
            tl.store(target_logit_ptr + i, logit, mask=stored & here)
            if STATISTICS:
                _statistics_of_part(part, j < columns, start // (BN // 4), i, tokens, peak_ptr, total_ptr, weighted_ptr)
            if MIXED:
                teacher = _load_tile(mixture_ptr, row, start, tokens, columns, mixture_stride, 0.0, BM, BN // 4)
                if CLAMP:
                    normal = teacher - tl.load(log_sum_ptr + i, mask=stored, other=0.0)[:, None]
                    gain = normal - (part - tl.load(log_sum_ptr + tokens + i, mask=stored, other=0.0)[:, None])
                    part = teacher + tl.minimum(tl.maximum((lambda_ - 1) * gain, -bound), bound)
                else:
                    part = lambda_ * teacher + (1 - lambda_) * part
            _store_tile(mixture_ptr, part, row, start, tokens, columns, mixture_stride, False, BM, BN // 4)


@triton.jit
def sides_kernel(
    hidden, weight, target_ptr, sides_ptr, target_logit_ptr, mixture_ptr, exp_ptr, other_ptr,
    tokens, inner, columns, hidden_stride, weight_stride, mixture_stride, exp_stride, parts, first,
    inverse_temperature,
    KEEP: tl.constexpr, FORWARD: tl.constexpr,
    DESCRIBED: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of each row of the student's logits z and of D, over each part of BN / 4 columns, in the planes [parts, tokens]
    of `sides`: peak, total, weighted of z; the same of D; the gap of DistributionStatistics; `shift`.

    KEEP: also exp(z - peak) into `exp`, and into `other` z - D - shift (reverse) or exp(D - shift) - exp(z - peak).
    """
    row, column = _tile(tl.program_id(0), tokens, columns, BM, BN)
    z = inverse_temperature * _logits(
        hidden, weight, row, column, tokens, columns, inner, hidden_stride, weight_stride, DESCRIBED, EVEN, BM, BN, BK
    )
    i = row + tl.arange(0, BM)
    stored = i < tokens
    target = tl.load(target_ptr + i, mask=stored, other=-1) - first
    plane = parts.to(tl.int64) * tokens
    quarters = _quarters(z, BM, BN)
    for n in tl.static_range(4):
        start = column + n * (BN // 4)
        if start < columns:
            part, j = quarters[n], start + tl.arange(0, BN // 4)
            logit = tl.max(tl.where(j[None, :] == target[:, None], part, -float("inf")), 1)
            here = (target >= start) & (target < tl.minimum(start + BN // 4, columns))
            tl.store(target_logit_ptr + i, logit, mask=stored & here)
            inside, number = (j < columns)[None, :], start // (BN // 4)
            mixture = _load_tile(mixture_ptr, row, start, tokens, columns, mixture_stride, -float("inf"), BM, BN // 4)
            peak = tl.max(tl.where(inside, part, -float("inf")), 1)
            peak_d = tl.max(mixture, 1)
            highest = inside & (part == peak[:, None])
            at_highest = tl.max(tl.where(highest, mixture, -float("inf")), 1)
            below = part - peak[:, None]
            below_d = tl.where(inside, mixture - peak_d[:, None], 0.0)
            exp = tl.where(inside, tl.exp(below), 0.0)
            exp_d = tl.where(inside, tl.exp(below_d), 0.0)
            gap, total, total_d = below - below_d, tl.sum(exp, 1), tl.sum(exp_d, 1)
            at = sides_ptr + number.to(tl.int64) * tokens + i
            tl.store(at, peak, mask=stored)
            tl.store(at + plane, total, mask=stored)
            tl.store(at + 2 * plane, tl.sum(exp * below, 1), mask=stored)
            tl.store(at + 3 * plane, peak_d, mask=stored)
            tl.store(at + 4 * plane, total_d, mask=stored)
            tl.store(at + 5 * plane, tl.sum(exp_d * below_d, 1), mask=stored)
            if FORWARD:
                tl.store(at + 6 * plane, -tl.sum(exp_d * gap, 1), mask=stored)
                ratio = total / total_d
                shift, other = peak_d - tl.log(ratio), exp_d * ratio[:, None] - exp
            else:
                tl.store(at + 6 * plane, tl.sum(exp * gap, 1), mask=stored)
                shift, other = peak - at_highest, gap - (peak_d - at_highest)[:, None]
            tl.store(at + 7 * plane, shift, mask=stored)
            if KEEP:
                _store_tile(exp_ptr, exp, row, start, tokens, columns, exp_stride, False, BM, BN // 4)
                _store_tile(other_ptr, other, row, start, tokens, columns, exp_stride, False, BM, BN // 4)


@triton.jit
def gap_kernel(
    sides_ptr, leading_ptr, trailing_ptr, gap_ptr, tokens, parts, leading, trailing,
    ROWS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The gap of each row from those of its parts, given both sides' peaks [tokens] over all parts. leading, trailing:
    planes of `sides` where each side's statistics begin."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stored = i < tokens
    plane = parts.to(tl.int64) * tokens
    peak = tl.load(leading_ptr + i, mask=stored, other=0.0)[None, :]
    other = tl.load(trailing_ptr + i, mask=stored, other=0.0)[None, :]
    gap = tl.zeros((ROWS,), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        mask = (part < parts)[:, None] & stored[None, :]
        at = sides_ptr + part[:, None].to(tl.int64) * tokens + i[None, :]
        lower = tl.where(mask, tl.load(at + leading * plane, mask=mask, other=0.0) - peak, 0.0)
        below = tl.where(mask, tl.load(at + trailing * plane, mask=mask, other=0.0) - other, 0.0)
        total = tl.load(at + (leading + 1) * plane, mask=mask, other=0.0)
        gap += tl.sum((tl.load(at + 6 * plane, mask=mask, other=0.0) + total * (lower - below)) * tl.exp(lower), 0)
    tl.store(gap_ptr + i, gap, mask=stored)


@triton.jit
def kept_distribution_gradient_kernel(
    exp_ptr, other_ptr, peak_ptr, shift_ptr, target_ptr, log_sum_ptr, mixture_log_sum_ptr, gap_ptr, own_log_sum_ptr,
    grad_divergence_ptr, grad_logprobs_ptr, at_target_ptr,
    tokens, columns, exp_stride, inverse_temperature,
    FORWARD: tl.constexpr, SAMPLED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """d loss / d logits in place of the exp(z - peak) that sides_kernel kept; BN columns are one of its parts."""
    row, column = _tile(tl.program_id(0), tokens, columns, BM, BN)
    i, j = row + tl.arange(0, BM), column + tl.arange(0, BN)
    stored = i < tokens
    part = (column // BN).to(tl.int64) * tokens + i
    peak, shift = tl.load(peak_ptr + part, mask=stored, other=0.0), tl.load(shift_ptr + part, mask=stored, other=0.0)
    exp = _load_tile(exp_ptr, row, column, tokens, columns, exp_stride, 0.0, BM, BN).to(tl.float32)
    other = _load_tile(other_ptr, row, column, tokens, columns, exp_stride, 0.0, BM, BN).to(tl.float32)
    slope = tl.load(grad_divergence_ptr + i, mask=stored, other=0.0)
    of_z = slope * tl.exp(peak - tl.load(log_sum_ptr + i, mask=stored, other=0.0))
    if FORWARD:
        of_d = slope * tl.exp(shift - tl.load(mixture_log_sum_ptr + i, mask=stored, other=0.0))
        grad = exp * (of_z - of_d)[:, None] - other * of_d[:, None]
    else:
        offset = shift - tl.load(gap_ptr + i, mask=stored, other=0.0)
        grad = exp * of_z[:, None] * (other + offset[:, None])
    if SAMPLED:
        own = tl.exp(peak - tl.load(own_log_sum_ptr + i, mask=stored, other=0.0))
        grad = _with_sampled(grad, exp * own[:, None], i, j, stored, target_ptr, grad_logprobs_ptr, at_target_ptr, 0)
    _store_tile(exp_ptr, inverse_temperature * grad, row, column, tokens, columns, exp_stride, False, BM, BN)


@triton.jit
def distribution_gradient_kernel(
    hidden, weight, mixture_ptr, target_ptr, log_sum_ptr, mixture_log_sum_ptr, gap_ptr, own_log_sum_ptr,
    grad_divergence_ptr, grad_logprobs_ptr, at_target_ptr, grad_ptr,
    tokens, inner, columns, hidden_stride, weight_stride, mixture_stride, grad_stride, first, inverse_temperature,
    FORWARD: tl.constexpr, SAMPLED: tl.constexpr,
    DESCRIBED: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """d loss / d logits [tokens, columns] with the student's logits computed again; target `first` is column 0."""
    row, column = _tile(tl.program_id(0), tokens, columns, BM, BN)
    z = inverse_temperature * _logits(
        hidden, weight, row, column, tokens, columns, inner, hidden_stride, weight_stride, DESCRIBED, EVEN, BM, BN, BK
    )
    i = row + tl.arange(0, BM)
    stored = i < tokens
    slope = tl.load(grad_divergence_ptr + i, mask=stored, other=0.0)[:, None]
    log_sum = tl.load(log_sum_ptr + i, mask=stored, other=0.0)[:, None]
    quarters = _quarters(z, BM, BN)
    for n in tl.static_range(4):
        start = column + n * (BN // 4)
        if start < columns:
            part, j = quarters[n], start + tl.arange(0, BN // 4)
            mixture = _load_tile(mixture_ptr, row, start, tokens, columns, mixture_stride, 0.0, BM, BN // 4)
            p = tl.exp(part - log_sum)
            if FORWARD:
                log_sum_d = tl.load(mixture_log_sum_ptr + i, mask=stored, other=0.0)[:, None]
                grad = slope * (p - tl.exp(mixture - log_sum_d))
            else:
                grad = slope * p * (part - mixture - tl.load(gap_ptr + i, mask=stored, other=0.0)[:, None])
            if SAMPLED:
                own = tl.exp(part - tl.load(own_log_sum_ptr + i, mask=stored, other=0.0)[:, None])
                grad = _with_sampled(
                    grad, own, i, j, stored, target_ptr, grad_logprobs_ptr, at_target_ptr, first
                )  # fmt: skip
            _store_tile(
                grad_ptr, inverse_temperature * grad, row, start, tokens, columns, grad_stride, False, BM, BN // 4
            )


@triton.jit
def _with_sampled(grad, p, i, j, stored, target_ptr, grad_logprobs_ptr, at_target_ptr, first):
    """Adds grad_logprobs ([j = target] - p), whose value at the target is given."""
    target = tl.load(target_ptr + i, mask=stored, other=-1) - first
    slope = tl.load(grad_logprobs_ptr + i, mask=stored, other=0.0)
    at_target = tl.load(at_target_ptr + i, mask=stored, other=0.0)
    return grad + tl.where(j[None, :] == target[:, None], at_target[:, None], -p * slope[:, None])


@triton.jit
def _load_tile(ptr, row, column, rows, columns, stride, other, BM: tl.constexpr, BN: tl.constexpr):
    at = ptr + row.to(tl.int64) * stride + column
    at = at + tl.arange(0, BM)[:, None] * stride + tl.arange(0, BN)[None, :]
    inside = (row + tl.arange(0, BM) < rows)[:, None] & (column + tl.arange(0, BN) < columns)[None, :]
    return tl.load(at, mask=inside, other=other)
