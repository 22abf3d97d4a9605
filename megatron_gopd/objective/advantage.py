"""The G-OPD advantage of a sampled token."""

from __future__ import annotations

import torch
from torch import Tensor


def advantage(
    student: Tensor, teacher: Tensor, reference: Tensor | None, lambda_: float | Tensor, clamp: float | None = None
) -> Tensor:
    """A_t of every sampled token, to be ascended; detached.

        A_t = lambda (log pi*(y_t) - log pi_ref(y_t)) - (log pi_theta(y_t) - log pi_ref(y_t))
            = (log pi* - log pi_theta) + (lambda - 1) (log pi* - log pi_ref)

    The paper's Eq. 14 and 22 print -A_t (the gradient of a loss); the text under its Eq. 6 has this sign.
    The second form is the one computed: at lambda = 1 the reference drops out and may be None.

    Args:
        student, teacher, reference: [tokens] log-probs of the sampled tokens, nats, one temperature for all.
        lambda_: reward scale, of all tokens or [tokens]; 1 is on-policy distillation, > 1 extrapolates (ExOPD), 0 pulls
            to the reference.
        clamp: bound of the second term's absolute value, nats; None: there is none.

    Returns:
        [tokens], nats.

    Raises:
        ValueError: lambda_ != 1 without a reference.
    """
    refuse_no_reference(lambda_, reference)
    gap = teacher - student
    if reference is not None:
        beyond = (lambda_ - 1) * (teacher - reference)
        gap = gap + (beyond if clamp is None else beyond.clamp(-clamp, clamp))
    return gap.detach()


def refuse_no_reference(lambda_: float | Tensor, reference: Tensor | None) -> None:
    """Raises ValueError."""
    if reference is None and bool(torch.as_tensor(lambda_ != 1).any()):
        raise ValueError(f"lambda = {lambda_} needs the reference's log-probs")
