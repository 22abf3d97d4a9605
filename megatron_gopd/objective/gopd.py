"""Generalized On-Policy Distillation as a token loss."""

from __future__ import annotations

from torch import Tensor

from megatron_gopd.objective.advantage import advantage
from megatron_gopd.objective.correction import rollout_correction
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows


def gopd_loss(lambda_: float, correction_cap: float | None, *, clamp: float | None = None, reward_weight: float = 0.0):
    """Build `token_loss(logprobs, entropy, rows)` for one lambda.

        L = - sum_t weight_t w_t A_t rho_t,   rho_t = pi_theta(y_t) / stop_gradient(pi_theta(y_t)) = 1

    so the gradient is -weight_t w_t A_t d log pi_theta(y_t): ascent on A_t, discount 0, no baseline. At lambda = 1
    and w_t = 1 the value of L is the weighted mean of log pi_theta - log pi*, an estimate of the reverse KL.
    With a reward weight, A_t + reward_weight * outcome takes the place of A_t.

    Args:
        lambda_, clamp: see objective.advantage.
        correction_cap: cap of objective.rollout_correction; None: w_t = 1.
        reward_weight: of the response's group advantage, rows.outcome; nats.
    """

    def token_loss(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
        student = logprobs.detach()
        gain = advantage(student, rows.teacher_logprobs, rows.reference_logprobs, rows.lambda_or(lambda_), clamp)
        if reward_weight:
            gain = gain + reward_weight * rows.outcome.to(gain.dtype)
        metrics = {"advantage": gain}
        descent = -rows.weights.to(gain.dtype) * gain
        if correction_cap is not None:
            metrics["rollout_correction"] = rollout_correction(student, rows.behaviour_logprobs, correction_cap)
            descent = descent * metrics["rollout_correction"]
        return TokenLoss(descent.sum(), descent, None, metrics)

    return token_loss
