"""Token-level correction for a rollout engine whose log-probs differ from the trainer's."""

from __future__ import annotations

import torch
from torch import Tensor


def rollout_correction(student: Tensor, behaviour: Tensor, cap: float) -> Tensor:
    """Truncated importance weight of every sampled token; detached.

        w_t = min(exp(clamp(log pi_theta,train(y_t) - log pi_rollout(y_t), -20, 20)), cap)

    Source: the published G-OPD runs (token-level truncated importance sampling, cap 5).

    Args:
        student: [tokens] trainer's log-probs before the update, nats.
        behaviour: [tokens] log-probs by the engine that sampled, nats.

    Returns:
        [tokens] in (0, cap].
    """
    ratio = torch.exp((student - behaviour).clamp(-20.0, 20.0))
    return ratio.clamp(max=cap).detach()
