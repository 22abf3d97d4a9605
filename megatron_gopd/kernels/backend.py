"""The seam between what is computed on one device and what is spread over ranks.

A backend works on ONE shard of the vocabulary and ONE chunk of tokens, and knows of no process group. head.py merges
the statistics of all shards; linear_logprob.py and linear_token_loss.py cut the tokens into chunks and feed the
gradients back. Backends: torch (any dtype, any device), cpp (CPU), triton (CUDA).
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Of the logits z = hidden @ weight.T / temperature of every token over one shard; [tokens], float32 or wider."""

    peak: Tensor  # max z; -inf over no rows
    total: Tensor  # sum exp(z - peak)
    weighted: Tensor  # sum exp(z - peak) (z - peak)
    target_logit: Tensor  # z of the target; -inf where the target is not in this shard
    kept: object | None = None  # what `gradients` may use to save a GEMM, the backend's own


class Upstream(NamedTuple):
    """The whole distribution of every token, and what is asked of it; [tokens], float32 or wider."""

    log_sum: Tensor  # log sum exp z over the whole vocabulary
    logprobs: Tensor  # z_target - log_sum
    entropy: Tensor
    grad_logprobs: Tensor  # d loss / d logprob
    grad_entropy: Tensor | None  # d loss / d entropy; None: the loss does not use it


class Backend(Protocol):
    """Both methods get a chunk `hidden` [tokens, h] and a shard `weight` [rows, h] (rows >= 1) of one dtype and device,
    rows contiguous, and `targets` [tokens] int64: row numbers of `weight`; any other number is a target elsewhere.

    A NaN or infinite logit must come out as a statistic that is not finite, never be dropped by a maximum.
    """

    def statistics(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, keep: bool) -> Statistics:
        """keep: `gradients` will follow at once with the same tensors, and may use `kept`."""
        ...

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
        """This shard's share of d loss / d hidden: [tokens, h], float32 or wider; 1 / temperature included.

            d loss / d z_j = grad_logprobs ([j = target] - p_j) - grad_entropy p_j (log p_j + entropy)

        Args:
            kept: from `statistics` (keep=True) of the same chunk; None: compute the logits again.
            grad_weight: [rows, h] of any float dtype, rows contiguous: d loss / d weight is added to it, or written
                over it unless `add`. None: not wanted.
        """
        ...


def backend_for(hidden: Tensor) -> Backend:
    """The fastest backend that takes tensors of this device and dtype."""
    if hidden.device.type == "cpu" and (cpp := _cpp()) is not None and cpp.takes(hidden):
        return cpp
    if hidden.is_cuda and (triton := _triton(hidden.device)) is not None and triton.takes(hidden):
        return triton
    return _torch()


@functools.cache
def _cpp() -> Backend | None:
    from megatron_gopd.kernels.cpp_backend import CppBackend
    from megatron_gopd.kernels.cpp_build import load_cpp

    library = load_cpp()
    return None if library is None else CppBackend(library)


@functools.cache
def _triton(device: torch.device) -> Backend | None:
    if importlib.util.find_spec("triton") is None:
        warnings.warn("triton is not installed: log-probs on the GPU take the slower torch path", stacklevel=2)
        return None
    from megatron_gopd.kernels.triton_backend import TritonBackend

    major, minor = torch.cuda.get_device_capability(device)
    return TritonBackend(10 * major + minor)


@functools.cache
def _torch() -> Backend:
    from megatron_gopd.kernels.torch_backend import TorchBackend

    return TorchBackend()
