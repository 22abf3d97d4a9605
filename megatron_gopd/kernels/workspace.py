"""The memory that linear_token_loss and linear_distribution_loss take beside their inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from megatron_gopd.kernels.chunks import GPU_KEPT_BYTES, most_tokens, tokens_per_chunk

TILE, PART, GROUP = 128, 2048, 1024  # vocabulary rows, of cpp/
GPU_PART, GPU_BLOCK = 64, 8192  # vocabulary rows, of triton_tiles.py and triton_backend.py
PLANES, SIDES_PART = 8, 32  # of triton_distribution.py: statistics of a part, rows of a part
SHARE, STEP = 8, 64 * 2**20
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def kept_bytes(free: float) -> int:
    """Of a GPU with `free` bytes, those for what one_pass keeps of a chunk: an eighth, at most GPU_KEPT_BYTES.

    In steps, so that a little more or less free memory changes no chunk, and so no bit of a sum.
    """
    return max(STEP, min(GPU_KEPT_BYTES, int(free / SHARE) // STEP * STEP))


def workspace_bytes(
    tokens: int,
    hidden: int,
    vocabulary: int,
    ranks: int,
    mode: Literal["one_pass", "recompute"],
    *,
    holds_weight_gradient: bool = False,
    itemsize: int = 2,
    targets: Sequence[int] = (),
) -> int:
    """Bytes a rank, with the tokens and the vocabulary cut over `ranks`; the C++ backend's.

    Args:
        vocabulary: rows of the whole head.
        holds_weight_gradient: one_pass that keeps the weight's gradient, in float32, until the backward pass; else it
            goes to main_grad at once, or in recompute mode in the backward pass.
        itemsize: bytes of an element of hidden and weight.
        targets: of a distribution loss, the hidden sizes of teacher and, if there is one, reference.
    """
    rows, numbers = -(-vocabulary // ranks), 2 if targets else 1  # kept of a logit
    chunk = min(tokens, most_tokens(CPU) if mode == "recompute" else tokens_per_chunk(rows, numbers * itemsize, CPU))
    gathered = chunk * (hidden + sum(targets)) * itemsize
    packed = gathered + chunk * (hidden + GROUP) * itemsize + GROUP * hidden * itemsize  # operands of the GEMMs
    statistics = 12 * chunk * rows // PART * (len(targets) + 2 if targets else 1)
    kept = numbers * (chunk * rows * itemsize + 4 * chunk * rows // TILE) if mode == "one_pass" else 0
    share = 4 * chunk * hidden * (1 + (1 / ranks if ranks > 1 else 0))
    held = tokens // ranks * hidden * itemsize + (4 * rows * hidden if holds_weight_gradient else 0)
    return int((gathered if ranks > 1 else 0) + packed + statistics + kept + share + held)


def gpu_workspace_bytes(
    tokens: int,
    hidden: int,
    vocabulary: int,
    ranks: int,
    mode: Literal["one_pass", "recompute"],
    *,
    kept: int | None = None,
    itemsize: int = 2,
) -> int:
    """As workspace_bytes, of linear_token_loss by the Triton backend; a weight's gradient goes to main_grad at once.

    kept: what one_pass may keep of a chunk, as `kept_bytes` gives it.
    """
    rows = -(-vocabulary // ranks)
    chunk = min(tokens, most_tokens(GPU) if mode == "recompute" else tokens_per_chunk(rows, itemsize, GPU, kept))
    logits = itemsize * chunk * (min(rows, GPU_BLOCK) if mode == "recompute" else rows)
    statistics = 12 * chunk * rows // GPU_PART
    gathered = itemsize * chunk * hidden * (1 if ranks > 1 else 0)
    scaled = itemsize * chunk * hidden if mode == "one_pass" else 0  # by each row's factor
    share = 4 * chunk * hidden * (1 + (1 / ranks if ranks > 1 else 0))
    held = tokens // ranks * hidden * itemsize  # the gradient of hidden, until the backward pass
    both = max(logits, statistics) if mode == "recompute" else logits + statistics
    return int(gathered + both + scaled + share + held)


def gpu_mixture_bytes(tokens: int, rows: int) -> int:
    """Of D, which a GPU holds over one block of the `rows` of a rank's vocabulary, in float32."""
    return 4 * tokens * min(GPU_BLOCK, rows)


def gpu_statistics_bytes(tokens: int, rows: int, targets: int) -> int:
    """Of a distribution loss's statistics of every part of a rank's `rows`, which one_pass keeps for the gradients.

    targets: heads beside the student's. On sm_100 and in float32 parts are half as long, and these twice as many.
    """
    planes = PLANES + (3 * targets if targets > 1 else 0)
    return 4 * planes * tokens * -(-rows // SIDES_PART)
