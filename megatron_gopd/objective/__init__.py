"""The paper in pure tensor functions: no models, no ranks."""

from pkgutil import resolve_name

from megatron_gopd.config.algorithm import AlgorithmSection
from megatron_gopd.objective.advantage import advantage, advantage_parts
from megatron_gopd.objective.aggregation import token_weights
from megatron_gopd.objective.by_autograd import by_autograd
from megatron_gopd.objective.coarse import coarse_divergence
from megatron_gopd.objective.correction import rollout_correction
from megatron_gopd.objective.distribution_loss import DistributionLoss
from megatron_gopd.objective.exact import exact_loss
from megatron_gopd.objective.gopd import gopd_loss
from megatron_gopd.objective.group import group_advantages
from megatron_gopd.objective.grpo import grpo_loss
from megatron_gopd.objective.sft import sft_loss
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows

__all__ = [
    "DistributionLoss",
    "TokenLoss",
    "TokenRows",
    "advantage",
    "advantage_parts",
    "by_autograd",
    "coarse_divergence",
    "exact_loss",
    "gopd_loss",
    "group_advantages",
    "grpo_loss",
    "loss_of",
    "rollout_correction",
    "sft_loss",
    "token_weights",
]


def loss_of(algorithm: AlgorithmSection):
    """The loss that `algorithm` hands to the student, built from its keys."""
    return resolve_name(algorithm.LOSS)(**algorithm.loss_settings)
