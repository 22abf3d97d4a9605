"""The GPU kernels of the fused log-prob. No program writes what another writes: no atomics, the same bits every run.

Offsets that grow with [tokens, vocabulary] or [vocabulary, hidden] are 64 bit, but only where they are one number a
program; within a tile they are 32 bit, which spares registers. DESCRIBED: `hidden` and `weight` are descriptors, which
the GPU's copy engine reads tiles through (sm_90 on), and a program works on one tile after the other; else they are
pointers. What lies past an end is read as the last row, or as zeros, and never stored or summed.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

# the interpreter computes bf16 products wrongly: there tiles are widened first
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


# kept exponentials are relative to one offset a row, where its logits lie within this many nats above it: bf16 and
# float32 hold e^50, and the coefficients times e^-50
NEAR = tl.constexpr(50.0)


@triton.jit
def statistics_kernel(
    hidden, weight, target_ptr, peak_ptr, total_ptr, weighted_ptr, target_logit_ptr, offset_ptr, exp_ptr,
    tokens, inner, columns, hidden_stride, weight_stride, exp_stride, inverse_temperature,
    KEEP: tl.constexpr, DESCRIBED: tl.constexpr, FLATTEN: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of each row of the logits z, over each part of BN / 4 columns: peak = max z, sum exp(z - peak) and
    sum exp(z - peak) (z - peak), all [parts, tokens]; and the target's logit [tokens], by the part that holds it.

    KEEP: also exp(z - _base) [tokens, columns] in the dtype of the inputs.
    """
    tiles = tl.cdiv(tokens, BM) * tl.cdiv(columns, BN)
    for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        row, column = _tile(number, tokens, columns, BM, BN)
        z = inverse_temperature * _logits(
            hidden, weight, row, column, tokens, columns, inner, hidden_stride, weight_stride,
            DESCRIBED, EVEN, BM, BN, BK,
        )  # fmt: skip
        i = row + tl.arange(0, BM)
        stored = i < tokens
        target = tl.load(target_ptr + i, mask=stored, other=-1)
        quarters = _quarters(z, BM, BN)
        for n in tl.static_range(4):
            start = column + n * (BN // 4)
            if start < columns:
                part, j = quarters[n], start + tl.arange(0, BN // 4)
                logit = tl.max(tl.where(j[None, :] == target[:, None], part, -float("inf")), 1)
                here = (target >= start) & (target < tl.minimum(start + BN // 4, columns))
                tl.store(target_logit_ptr + i, logit, mask=stored & here)
                peak, exp = _statistics_of_part(
                    part, j < columns, start // (BN // 4), i, tokens, peak_ptr, total_ptr, weighted_ptr
                )
                if KEEP:
                    offset = tl.load(offset_ptr + i, mask=stored, other=0.0)
                    exp *= tl.exp(peak - _base(peak, offset))[:, None]
                    _store_tile(exp_ptr, exp, row, start, tokens, columns, exp_stride, False, BM, BN // 4)


@triton.jit
def merge_kernel(
    peak_ptr, total_ptr, weighted_ptr, merged_ptr, tokens, parts, ROWS: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """Statistics of each row [3, tokens] from those of its parts, in one order: a row's bits are its own."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stored = i < tokens
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    total, weighted = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        at, mask = part[:, None].to(tl.int64) * tokens + i[None, :], (part < parts)[:, None] & stored[None, :]
        part_peak = tl.load(peak_ptr + at, mask=mask, other=-float("inf"))
        higher = tl.maximum(peak, tl.max(part_peak, 0))
        lower = tl.where(mask, part_peak - higher[None, :], 0.0)
        part_total = tl.load(total_ptr + at, mask=mask, other=0.0)
        part_weighted = tl.load(weighted_ptr + at, mask=mask, other=0.0) + part_total * lower
        fallen = tl.where(total == 0.0, 0.0, peak - higher)  # -inf - -inf is NaN
        weighted = (weighted + total * fallen) * tl.exp(fallen) + tl.sum(part_weighted * tl.exp(lower), 0)
        total = total * tl.exp(fallen) + tl.sum(part_total * tl.exp(lower), 0)
        peak = higher
    tl.store(merged_ptr + i, peak, mask=stored)
    tl.store(merged_ptr + tokens + i, total, mask=stored)
    tl.store(merged_ptr + 2 * tokens + i, weighted, mask=stored)


@triton.jit
def row_factor_kernel(
    exp_ptr, peak_ptr, offset_ptr, target_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr,
    at_target_ptr, factor_ptr,
    tokens, columns, exp_stride, inverse_temperature, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """factor [tokens] such that d loss / d logits = factor * what is kept, without an entropy's gradient.

    But for the target's column, that is so already of a row whose logits lie near its offset. Of any other row the
    gradient is written in place of what is kept, and its factor is 1.
    """
    row = tl.program_id(0) * BM
    i = row + tl.arange(0, BM)
    stored = i < tokens
    down = tl.load(offset_ptr + i, mask=stored, other=0.0) - tl.load(log_sum_ptr + i, mask=stored, other=0.0)
    near = down >= -NEAR
    slope = tl.load(grad_logprobs_ptr + i, mask=stored, other=0.0)
    factor = tl.where(near, -inverse_temperature * slope * tl.exp(down), 1.0)
    tl.store(factor_ptr + i, factor, mask=stored)
    if tl.max((stored & (near == 0)).to(tl.int32), 0) > 0:
        for part in range(tl.cdiv(columns, BN)):
            column = row * 0 + part * BN  # as a tensor, which the interpreter's counter is not
            grad = _gradient_of_kept(
                exp_ptr, peak_ptr, offset_ptr, target_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr,
                grad_entropy_ptr, at_target_ptr, row, column, tokens, columns, exp_stride, inverse_temperature,
                False, BM, BN,
            )  # fmt: skip
            far = (stored & (near == 0))[:, None] & (column + tl.arange(0, BN) < columns)[None, :]
            at = exp_ptr + row.to(tl.int64) * exp_stride + column
            at = at + tl.arange(0, BM)[:, None] * exp_stride + tl.arange(0, BN)[None, :]
            tl.store(at, grad.to(exp_ptr.dtype.element_ty), mask=far)
    target = tl.load(target_ptr + i, mask=stored, other=-1)
    here = stored & near & (slope != 0.0) & (target >= 0) & (target < columns)
    at_target = -tl.load(at_target_ptr + i, mask=stored, other=0.0) / tl.where(here, slope, 1.0) * tl.exp(-down)
    tl.store(exp_ptr + i.to(tl.int64) * exp_stride + target, at_target.to(exp_ptr.dtype.element_ty), mask=here)


@triton.jit
def kept_gradient_kernel(
    exp_ptr, peak_ptr, offset_ptr, target_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr,
    at_target_ptr, tokens, columns, exp_stride, inverse_temperature,
    ENTROPY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """d loss / d logits in place of what statistics_kernel kept; BN columns are one of its parts."""
    row, column = _tile(tl.program_id(0), tokens, columns, BM, BN)
    grad = _gradient_of_kept(
        exp_ptr, peak_ptr, offset_ptr, target_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr,
        at_target_ptr, row, column, tokens, columns, exp_stride, inverse_temperature, ENTROPY, BM, BN,
    )  # fmt: skip
    _store_tile(exp_ptr, grad, row, column, tokens, columns, exp_stride, False, BM, BN)


@triton.jit
def gradient_kernel(
    hidden, weight, target_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr, at_target_ptr,
    grad_ptr, tokens, inner, columns, hidden_stride, weight_stride, grad_stride, first, inverse_temperature,
    ENTROPY: tl.constexpr, DESCRIBED: tl.constexpr, FLATTEN: tl.constexpr, EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """d loss / d logits [tokens, columns] with the logits computed again; target `first` is column 0."""
    tiles = tl.cdiv(tokens, BM) * tl.cdiv(columns, BN)
    for number in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        row, column = _tile(number, tokens, columns, BM, BN)
        z = inverse_temperature * _logits(
            hidden, weight, row, column, tokens, columns, inner, hidden_stride, weight_stride,
            DESCRIBED, EVEN, BM, BN, BK,
        )  # fmt: skip
        i = row + tl.arange(0, BM)
        stored = i < tokens
        log_sum = tl.load(log_sum_ptr + i, mask=stored, other=0.0)
        quarters = _quarters(z, BM, BN)
        for n in tl.static_range(4):
            start = column + n * (BN // 4)
            if start < columns:
                log_p = quarters[n] - log_sum[:, None]
                grad = _gradient(
                    tl.exp(log_p), log_p, i, start + tl.arange(0, BN // 4), stored, target_ptr, entropy_ptr,
                    grad_logprobs_ptr, grad_entropy_ptr, at_target_ptr, first, inverse_temperature, ENTROPY,
                )  # fmt: skip
                _store_tile(grad_ptr, grad, row, start, tokens, columns, grad_stride, False, BM, BN // 4)


@triton.jit
def product_kernel(
    a_ptr, b_ptr, out_ptr,
    rows, columns, inner, a_row_stride, a_inner_stride, b_stride, out_stride,
    ADD: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out = a @ b, or out += a @ b, accumulated in float32 whatever the dtypes; a may be transposed."""
    row, column = _tile(tl.program_id(0), rows, columns, BM, BN)
    i, j, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    a = a_ptr + row.to(tl.int64) * a_row_stride + i[:, None] * a_row_stride + k[None, :] * a_inner_stride
    b = b_ptr + column + k[:, None] * b_stride + j[None, :]
    tile = _product(
        a, b, BK * a_inner_stride, BK * b_stride, (row + i < rows)[:, None], (column + j < columns)[None, :],
        inner, EVEN, BM, BN, BK,
    )  # fmt: skip
    quarters = _quarters(tile, BM, BN)
    for n in tl.static_range(4):
        start = column + n * (BN // 4)
        if start < columns:
            _store_tile(out_ptr, quarters[n], row, start, rows, columns, out_stride, ADD, BM, BN // 4)


@triton.jit
def _tile(number, rows, columns, BM: tl.constexpr, BN: tl.constexpr, BAND: tl.constexpr = 16):
    """First row and column of a tile: BAND row tiles at a time, so that neighbours share operands in L2."""
    column_tiles = tl.cdiv(columns, BN)
    band = number // (BAND * column_tiles)
    height = tl.minimum(tl.cdiv(rows, BM) - band * BAND, BAND)
    within = number % (BAND * column_tiles)
    return (band * BAND + within % height) * BM, (within // height) * BN


@triton.jit
def _logits(
    hidden, weight, row, column, tokens, columns, inner, hidden_stride, weight_stride,
    DESCRIBED: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The [BM, BN] tile of hidden @ weight.T at `row` and `column`. Past an end it repeats the last row or column, or,
    DESCRIBED, is 0."""
    if DESCRIBED:
        tile = tl.zeros((BM, BN), tl.float32)
        for start in range(0, inner, BK):
            left, right = hidden.load([row, start]), weight.load([column, start])
            if INTERPRET:
                left, right = left.to(tl.float32), right.to(tl.float32)
            tile = tl.dot(left, right.T, tile, input_precision="ieee")
    else:
        i = tl.minimum(tl.arange(0, BM), tokens - 1 - row)
        j = tl.minimum(tl.arange(0, BN), columns - 1 - column)
        k = tl.arange(0, BK)
        a = hidden + row.to(tl.int64) * hidden_stride + i[:, None] * hidden_stride + k[None, :]
        b = weight + column.to(tl.int64) * weight_stride + k[:, None] + j[None, :] * weight_stride
        tile = _product(a, b, BK, BK, (i >= 0)[:, None], (j >= 0)[None, :], inner, EVEN, BM, BN, BK)
    return tile


@triton.jit
def _product(
    a, b, a_step, b_step, a_inside, b_inside, inner,
    EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """a @ b [BM, BN] in float32 from pointers to the first [BM, BK] and [BK, BN], which move on by their steps."""
    k = tl.arange(0, BK)
    tile = tl.zeros((BM, BN), tl.float32)
    for start in range(0, inner, BK):
        left = tl.load(a, mask=a_inside if EVEN else a_inside & (k < inner - start)[None, :], other=0.0)
        right = tl.load(b, mask=b_inside if EVEN else b_inside & (k < inner - start)[:, None], other=0.0)
        if INTERPRET:
            left, right = left.to(tl.float32), right.to(tl.float32)
        # ieee: the default for float32 inputs would be TF32, with 10 bits of mantissa
        tile = tl.dot(left, right, tile, input_precision="ieee")
        a += a_step
        b += b_step
    return tile


@triton.jit
def _quarters(tile, BM: tl.constexpr, BN: tl.constexpr):
    """A tile's columns in four, to work on one after the other: the whole tile's temporaries would spill registers."""
    left, right = tl.split(tl.permute(tl.reshape(tile, (BM, 2, BN // 2)), (0, 2, 1)))
    first, second = tl.split(tl.permute(tl.reshape(left, (BM, 2, BN // 4)), (0, 2, 1)))
    third, fourth = tl.split(tl.permute(tl.reshape(right, (BM, 2, BN // 4)), (0, 2, 1)))
    return first, second, third, fourth


@triton.jit
def _statistics_of_part(part, inside, number, i, tokens, peak_ptr, total_ptr, weighted_ptr):
    """Stores the statistics of one part of every row; gives peak and exp(z - peak), 0 past the last column."""
    peak = tl.max(tl.where(inside[None, :], part, -float("inf")), 1)
    below = part - peak[:, None]
    exp = tl.where(inside[None, :], tl.exp(below), 0.0)
    out = number.to(tl.int64) * tokens + i
    tl.store(peak_ptr + out, peak, mask=i < tokens)
    tl.store(total_ptr + out, tl.sum(exp, 1), mask=i < tokens)
    tl.store(weighted_ptr + out, tl.sum(exp * below, 1), mask=i < tokens)
    return peak, exp


@triton.jit
def _base(peak, offset):
    """What the kept exponentials of a part are relative to: the row's offset, or, far above it, the part's peak."""
    return tl.where(peak - offset > NEAR, peak, offset)


@triton.jit
def _gradient_of_kept(
    exp_ptr, peak_ptr, offset_ptr, target_ptr, log_sum_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr,
    at_target_ptr, row, column, tokens, columns, exp_stride, inverse_temperature,
    ENTROPY: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """d loss / d logits of a tile, of one part, from what is kept of it."""
    i, j = row + tl.arange(0, BM), column + tl.arange(0, BN)
    stored = i < tokens
    peak = tl.load(peak_ptr + (column // BN).to(tl.int64) * tokens + i, mask=stored, other=0.0)
    base = _base(peak, tl.load(offset_ptr + i, mask=stored, other=0.0))
    down = base - tl.load(log_sum_ptr + i, mask=stored, other=0.0)
    at = exp_ptr + row.to(tl.int64) * exp_stride + column
    at = at + tl.arange(0, BM)[:, None] * exp_stride + tl.arange(0, BN)[None, :]
    exp = tl.load(at, mask=stored[:, None] & (j < columns)[None, :], other=0.0).to(tl.float32)
    log_p = tl.log(tl.where(exp > 0.0, exp, 1.0)) + down[:, None]  # where p is 0, so is p log p
    return _gradient(
        exp * tl.exp(down)[:, None], log_p, i, j, stored, target_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr,
        at_target_ptr, 0, inverse_temperature, ENTROPY,
    )  # fmt: skip


@triton.jit
def _gradient(
    p, log_p, i, j, stored, target_ptr, entropy_ptr, grad_logprobs_ptr, grad_entropy_ptr, at_target_ptr,
    first, inverse_temperature, ENTROPY: tl.constexpr,
):  # fmt: skip
    """Backend.gradients' d loss / d z_j, times 1 / temperature; the target's own is given (`at_target`)."""
    slope = tl.load(grad_logprobs_ptr + i, mask=stored, other=0.0)[:, None]
    if ENTROPY:
        entropy = tl.load(entropy_ptr + i, mask=stored, other=0.0)[:, None]
        slope += tl.load(grad_entropy_ptr + i, mask=stored, other=0.0)[:, None] * (log_p + entropy)
    target = tl.load(target_ptr + i, mask=stored, other=-1) - first
    at_target = tl.load(at_target_ptr + i, mask=stored, other=0.0)
    return inverse_temperature * tl.where(j[None, :] == target[:, None], at_target[:, None], -p * slope)


@triton.jit
def _store_tile(
    ptr, tile, row, column, rows, columns, stride, ADD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    at = ptr + row.to(tl.int64) * stride + column
    at = at + tl.arange(0, BM)[:, None] * stride + tl.arange(0, BN)[None, :]
    inside = (row + tl.arange(0, BM) < rows)[:, None] & (column + tl.arange(0, BN) < columns)[None, :]
    if ADD:
        tile += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, tile.to(ptr.dtype.element_ty), mask=inside)
