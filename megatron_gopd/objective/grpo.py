"""Group Relative Policy Optimization as a token loss."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_gopd.objective.correction import rollout_correction
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows

LARGEST_K3 = 10.0  # nats


def grpo_loss(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    kl_coefficient: float = 0.0,
    correction_cap: float | None = 5.0,
):
    """Build `token_loss(logprobs, entropy, rows)`.

        rho_t = pi_theta(y_t) / pi_old(y_t)
        l_t   = max(-A rho_t, -A clamp(rho_t, 1 - clip_low, 1 + clip_high)),  and where A < 0: min(l_t, -A dual_clip)
        L     = sum_t weight_t (w_t l_t + kl_coefficient k_t)
        k_t   = min(exp(log pi_ref - log pi_theta) - (log pi_ref - log pi_theta) - 1, 10)

    A is the response's group advantage, rows.outcome. Without rows.old_logprobs the step is on-policy: rho_t is 1 and
    nothing is clipped. w_t is objective.rollout_correction of the old log-probs. Log-ratios are clamped to +-20.
    k_t estimates KL(pi_theta || pi_ref), but its gradient is, in expectation, that of KL(pi_ref || pi_theta). Where its
    bound holds, which is where pi_ref / pi_theta is above 13.6 or below 1.7e-5, that gradient is 0.
    Sources: PPO (arXiv:1707.06347), dual clip (arXiv:1912.09729), k3 (joschu.net/blog/kl-approx.html),
    GRPO (arXiv:2402.03300); verl's compute_policy_loss_vanilla and low_var_kl, whose bound of k_t is NeMo RL's too.
    """

    def token_loss(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
        student = logprobs.detach()
        old = student if rows.old_logprobs is None else rows.old_logprobs
        gain, weights = rows.outcome.to(student.dtype), rows.weights.to(student.dtype)
        loss, slope, clipped = _surrogate(student - old, gain, clip_low, clip_high, dual_clip)
        metrics = {"advantage": gain, "clip_fraction": clipped.to(student.dtype)}
        if correction_cap is not None:
            metrics["rollout_correction"] = rollout_correction(old, rows.behaviour_logprobs, correction_cap)
            loss, slope = loss * metrics["rollout_correction"], slope * metrics["rollout_correction"]
        if kl_coefficient:
            metrics["reference_kl"], kl_slope = _k3(rows.reference_logprobs - student)
            loss, slope = loss + kl_coefficient * metrics["reference_kl"], slope + kl_coefficient * kl_slope
        return TokenLoss((weights * loss).sum(), weights * slope, None, metrics)

    return token_loss


def _surrogate(
    log_ratio: Tensor, gain: Tensor, low: float, high: float, dual: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """l_t, its derivative in log pi_theta, and where it is flat because a clip holds it."""
    ratio = torch.exp(log_ratio.clamp(-20.0, 20.0))
    plain, bounded = -gain * ratio, -gain * ratio.clamp(1 - low, 1 + high)
    clipped = bounded > plain
    loss = torch.maximum(plain, bounded)
    if dual is not None:
        too_far = (gain < 0) & (loss > -gain * dual)
        loss, clipped = torch.where(too_far, -gain * dual, loss), clipped | too_far
    flat = clipped | (log_ratio.abs() > 20.0)
    return loss, torch.where(flat, 0.0, plain), clipped


def _k3(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate of KL(pi_theta || pi_ref) from log pi_ref - log pi_theta, and its derivative in log pi_theta."""
    bounded = log_ratio.clamp(-20.0, 20.0)  # past either end the value is past its own bound
    ratio = bounded.exp()
    value = ratio - bounded - 1
    return value.clamp(max=LARGEST_K3), torch.where(value <= LARGEST_K3, 1 - ratio, 0.0)
