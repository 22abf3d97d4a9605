"""Log-probs straight from hidden states and the LM head: the logits are never held whole."""

from megatron_gopd.kernels.linear_logprob import linear_log_softmax, linear_logprob

__all__ = ["linear_log_softmax", "linear_logprob"]
