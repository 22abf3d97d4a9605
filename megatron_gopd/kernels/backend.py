"""The seam between what is computed on one device and what is spread over ranks.

A backend works on ONE shard of the vocabulary and ONE chunk of tokens, and knows of no process group. head.py merges
the statistics of all shards; linear_logprob.py and linear_token_loss.py cut the tokens into chunks and feed the
gradients back. Backends: torch (any dtype, any device), cpp (CPU), triton (CUDA).
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_gopd.kernels.target import Target


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


class Heads(NamedTuple):
    """The student's head and those of its target, over one chunk and ids that all of them have."""

    hidden: list[Tensor]  # [tokens, h_k] of student, teacher and, if there is one, reference
    weight: list[Tensor]  # [rows, h_k], the same rows of each
    target: Target  # how teacher and reference are mixed, and the divergence from them
    log_sums: Tensor | None  # [2, tokens] that a clamp needs


class DistributionStatistics(NamedTuple):
    """Statistics' columns of several logits at once; the first and the last rows are the divergence's two sides, z and
    D. `weighted` of D is the sum over the shard that their divergence needs,

        sum exp(x1 - peak1) ((x1 - peak1) - (x2 - peak2)),   x1, x2 = z, D (reverse) or D, z (forward)
    """

    peak: Tensor  # [heads + 1, tokens]: student, teacher, reference, D
    total: Tensor
    weighted: Tensor
    target_logit: Tensor  # [heads, tokens]
    kept: object | None = None


class DistributionUpstream(NamedTuple):
    """Both sides of the divergence of every token, and what is asked of it; [tokens], float32 or wider."""

    log_sum: Tensor  # log sum exp z over the shared ids
    mixture_log_sum: Tensor  # log sum exp D over the shared ids
    gap: Tensor  # reverse: the mean of z - D under softmax(z) over the shared ids
    own_log_sum: Tensor  # log sum exp z over the student's whole vocabulary
    logprobs: Tensor  # z_target - own_log_sum
    grad_divergence: Tensor  # d loss / d divergence
    grad_logprobs: Tensor | None  # d loss / d logprob; None: the loss does not use it


class Backend(Protocol):
    """All methods get a chunk `hidden` [tokens, h] and a shard `weight` [rows, h] (rows >= 1) of one dtype and device,
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

    def distribution_statistics(
        self, heads: Heads, targets: Tensor, temperature: float, keep: bool
    ) -> DistributionStatistics:
        """As `statistics`, of all heads and of D."""
        ...

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
        """As `gradients`, of the student's hidden and weight, with

        d loss / d z_j = grad_divergence g_j + grad_logprobs ([j = target] - exp(z_j - own_log_sum))
        reverse: g_j = exp(z_j - log_sum) (z_j - D_j - gap)
        forward: g_j = exp(z_j - log_sum) - exp(D_j - mixture_log_sum)
        """
        ...


def backend_for(hidden: Tensor) -> Backend:
    """The fastest backend that takes tensors of this device and dtype."""
    if hidden.device.type == "cpu" and (cpp := _cpp()) is not None and cpp.takes(hidden):
        return cpp
    if hidden.is_cuda and (triton := _triton(hidden.device)) is not None and triton.takes(hidden):
        return triton
    return torch_backend()


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

    found = torch.cuda.get_device_properties(device)
    return TritonBackend(10 * found.major + found.minor, found.multi_processor_count)


@functools.cache
def torch_backend() -> Backend:
    """The one that takes anything."""
    from megatron_gopd.kernels.torch_backend import TorchBackend

    return TorchBackend()
