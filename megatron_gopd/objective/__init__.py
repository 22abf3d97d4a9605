"""The paper in pure tensor functions: no models, no ranks."""

from megatron_gopd.objective.advantage import advantage
from megatron_gopd.objective.aggregation import token_weights
from megatron_gopd.objective.correction import rollout_correction
from megatron_gopd.objective.gopd import gopd_loss
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows

__all__ = ["TokenLoss", "TokenRows", "advantage", "gopd_loss", "rollout_correction", "token_weights"]
