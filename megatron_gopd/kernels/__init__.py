"""Log-probs and losses straight from hidden states and the LM head: the logits are never held whole."""

from megatron_gopd.kernels.linear_distribution_loss import LinearDistributionLoss, linear_distribution_loss
from megatron_gopd.kernels.linear_logits import linear_logits
from megatron_gopd.kernels.linear_logprob import linear_log_softmax, linear_logprob
from megatron_gopd.kernels.linear_token_loss import LinearTokenLoss, linear_token_loss
from megatron_gopd.kernels.naive_distribution import naive_distribution_loss
from megatron_gopd.kernels.reference import naive_logprob
from megatron_gopd.kernels.target import Target, TargetHead

__all__ = [
    "LinearDistributionLoss",
    "LinearTokenLoss",
    "Target",
    "TargetHead",
    "linear_distribution_loss",
    "linear_log_softmax",
    "linear_logits",
    "linear_logprob",
    "linear_token_loss",
    "naive_distribution_loss",
    "naive_logprob",
]
