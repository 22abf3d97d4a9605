"""Generalized On-Policy Distillation with the exact gradient at every prefix, as a distribution loss."""

from __future__ import annotations

from torch import Tensor

from megatron_gopd.objective.advantage import advantage
from megatron_gopd.objective.correction import rollout_correction
from megatron_gopd.objective.distribution_loss import DistributionLoss
from megatron_gopd.objective.token_loss import TokenRows


def exact_loss(lambda_: float, correction_cap: float | None, *, clamp: float | None = None, reward_weight: float = 0.0):
    """Build `distribution_loss(divergence, logprobs, entropy, rows)` for one lambda.

        L = sum_t weight_t (D_t - reward_weight w_t outcome rho_t),   rho_t = pi_theta(y_t) / stop_gradient(...) = 1

    D_t is the divergence of pi_theta from q = pi*^lambda pi_ref^(1 - lambda) / Z at the token's prefix, whose gradient
    the LM-head kernel knows. The sampled token's -A_t grad log pi_theta(y_t) is an estimate of it from one token. The
    correction w_t weighs a sampled action, on which D_t does not depend: it is of the reward's term only.

    Args:
        lambda_, clamp: of the advantage that is told beside the divergence; see objective.advantage.
        correction_cap: cap of objective.rollout_correction; None: w_t = 1.
        reward_weight: of the response's group advantage, rows.outcome; nats.
    """

    def distribution_loss(divergence: Tensor, logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> DistributionLoss:
        student, weights = logprobs.detach(), rows.weights.to(divergence.dtype)
        gain = advantage(student, rows.teacher_logprobs, rows.reference_logprobs, rows.lambda_or(lambda_), clamp)
        metrics = {"advantage": gain, "target_kl": divergence.detach()}
        loss, descent = (weights * divergence.detach()).sum(), None
        if reward_weight:
            metrics["advantage"] = gain + reward_weight * rows.outcome.to(gain.dtype)
            descent = -weights * reward_weight * rows.outcome.to(weights.dtype)
        if correction_cap is not None and rows.behaviour_logprobs is not None:
            metrics["rollout_correction"] = rollout_correction(student, rows.behaviour_logprobs, correction_cap)
            descent = descent if descent is None else descent * metrics["rollout_correction"]
        if descent is not None:
            loss = loss + descent.sum()
        return DistributionLoss(loss, weights, descent, metrics)

    return distribution_loss
