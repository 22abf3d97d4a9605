"""The paper in pure tensor functions: no models, no ranks."""

from megatron_gopd.objective.advantage import advantage
from megatron_gopd.objective.aggregation import token_weights
from megatron_gopd.objective.correction import rollout_correction
from megatron_gopd.objective.distribution_loss import DistributionLoss
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
    "gopd_loss",
    "group_advantages",
    "grpo_loss",
    "rollout_correction",
    "sft_loss",
    "token_weights",
]
