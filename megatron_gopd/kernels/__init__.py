"""Log-probs and token losses straight from hidden states and the LM head: the logits are never held whole."""

from megatron_gopd.kernels.linear_logprob import linear_log_softmax, linear_logprob
from megatron_gopd.kernels.linear_token_loss import LinearTokenLoss, linear_token_loss
from megatron_gopd.kernels.reference import naive_logprob

__all__ = ["LinearTokenLoss", "linear_log_softmax", "linear_logprob", "linear_token_loss", "naive_logprob"]
