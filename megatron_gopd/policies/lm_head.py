"""A Megatron model's LM head, asked by the kernels: log-probs for a scorer, a loss for the student."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from megatron_gopd.data.packing import MicroBatch
from megatron_gopd.kernels import (
    LinearDistributionLoss,
    LinearTokenLoss,
    Target,
    linear_distribution_loss,
    linear_log_softmax,
    linear_logits,
    linear_logprob,
    linear_token_loss,
    naive_distribution_loss,
    naive_logprob,
)
from megatron_gopd.kernels.linear_distribution_loss import DistributionLossFunction
from megatron_gopd.kernels.linear_token_loss import TokenLossFunction, with_gradient
from megatron_gopd.kernels.log_sum import linear_log_sum
from megatron_gopd.mcore.forward import loss_scale, rows_per_rank
from megatron_gopd.mcore.model import Model
from megatron_gopd.objective import TokenRows
from megatron_gopd.policies.target_heads import Shard


class Head(NamedTuple):
    """How the student's head is to be asked."""

    model: Model
    temperature: float
    naive: bool  # with the logits in memory
    kept_bytes: int | None = None  # of a chunk, see linear_token_loss


def token_logprobs(
    model: Model, hidden: Tensor, micro_batch: MicroBatch, temperature: float, naive: bool
) -> tuple[Tensor, Tensor]:
    """logprobs [response tokens], entropy [response tokens]; not finite where the logits are not.

    Args:
        hidden: what mcore.forward.run(gather=naive) gives.
        naive: with the logits materialised.
    """
    targets = micro_batch.targets.to(hidden.device)
    if naive:
        return naive_logprob(hidden, model.lm_head(), targets, **_head(model, temperature))
    slices = rows_per_rank(model, micro_batch)
    head = _head(model, temperature)
    return linear_logprob(hidden, model.lm_head(), targets, **head, rows_per_rank=slices, check_finite=False)


def token_losses(
    head: Head, hidden: Tensor, micro_batch: MicroBatch, token_loss: TokenLossFunction, rows: TokenRows
) -> LinearTokenLoss:
    """The loss of a micro-batch, as token_logprobs; the weight's gradient goes straight to its main_grad."""
    model = head.model
    if head.naive:
        logprobs, entropy = token_logprobs(model, hidden, micro_batch, head.temperature, naive=True)
        result = token_loss(logprobs.detach(), entropy.detach(), rows)
        loss = with_gradient(result, logprobs, entropy)
        return LinearTokenLoss(loss, logprobs.detach(), entropy.detach(), result.metrics)
    return linear_token_loss(
        hidden,
        model.lm_head(),
        micro_batch.targets.to(hidden.device),
        token_loss,
        rows,
        **_head(model, head.temperature),
        **_gradient(head, micro_batch),
    )


def distribution_losses(
    head: Head,
    hidden: Tensor,
    micro_batch: MicroBatch,
    distribution_loss: DistributionLossFunction,
    rows: TokenRows,
    target: Target,
) -> LinearDistributionLoss:
    """As token_losses, with every token of the vocabulary judged by `target`."""
    model, targets = head.model, micro_batch.targets.to(hidden.device)
    asked = _head(model, head.temperature)
    if head.naive:
        return naive_distribution_loss(hidden, model.lm_head(), targets, distribution_loss, rows, target, **asked)
    return linear_distribution_loss(
        hidden,
        model.lm_head(),
        targets,
        distribution_loss,
        rows,
        target,
        **asked,
        **_gradient(head, micro_batch),
    )


def support_logprobs(
    model: Model, hidden: Tensor, micro_batch: MicroBatch, ids: Tensor, temperature: float, naive: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs of `ids` [response tokens, k], and the entropy [response tokens]; differentiable.

    The weight's gradient goes straight to its main_grad, but for naive.

    Args:
        ids: in host memory; the first column is the micro-batch's targets. Where there is no such token, garbage.
    """
    targets, weight = micro_batch.targets.to(hidden.device), model.lm_head()
    head, slices = _head(model, temperature), None if naive else rows_per_rank(model, micro_batch)
    into = {"rows_per_rank": slices, "main_grad": None if naive else getattr(weight, "main_grad", None)}
    if naive:
        logprobs, entropy = naive_logprob(hidden, weight, targets, **head)
    else:
        logprobs, entropy = linear_logprob(hidden, weight, targets, **head, **into, check_finite=False)
    logits = linear_logits(hidden, weight, ids.long(), **head, **into)
    return logits - logits[:, :1] + logprobs[:, None], entropy


def log_sums(
    model: Model, hidden: Tensor, shard: Shard, micro_batch: MicroBatch, temperature: float, naive: bool
) -> Tensor:
    """log sum exp of another head's logits, [response tokens]; `hidden` as the student's."""
    first = model.vocab_range[0]
    return linear_log_sum(
        hidden,
        shard.weight,
        len(micro_batch.targets),
        temperature=temperature,
        vocab_range=(first, first + shard.rows),
        group=model.groups.tp,
        rows_per_rank=None if naive else rows_per_rank(model, micro_batch),
    )


def shared_law(model: Model, hidden: Tensor, shard: Shard, shared: int, temperature: float) -> Tensor:
    """Log-probs of another head over the ids 0 .. shared - 1: [tokens, shared] from the hidden states of all tokens."""
    step = len(model.lm_head())
    weight = shard.weight[:step]
    if len(weight) < step:  # a head that ends before the student's padding does
        weight = functional.pad(weight, (0, 0, 0, step - len(weight)))
    hidden, group = hidden.to(weight.device), model.groups.tp
    return linear_log_softmax(hidden, weight, temperature=temperature, vocab_size=shared, group=group)


def _head(model: Model, temperature: float) -> dict:
    return {"temperature": temperature, "vocab_range": model.vocab_range, "group": model.groups.tp}


def _gradient(head: Head, micro_batch: MicroBatch) -> dict:
    """How a loss that has its gradients at once is asked for; what is not finite is looked for after the update."""
    model = head.model
    return {
        "rows_per_rank": rows_per_rank(model, micro_batch),
        "main_grad": model.lm_head().main_grad,
        "main_grad_scale": loss_scale(model),
        "kept_bytes": head.kept_bytes,
        "check_finite": False,
    }
