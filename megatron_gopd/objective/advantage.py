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
    gap, beyond = advantage_parts(student, teacher, reference, lambda_, clamp)
    return (gap if beyond is None else gap + beyond).detach()


def advantage_parts(
    student: Tensor, teacher: Tensor, reference: Tensor | None, lambda_: float | Tensor, clamp: float | None = None
) -> tuple[Tensor, Tensor | None]:
    """The two terms of the second form: what the teacher would rather, and how far lambda goes beyond it.

    Arguments as of `advantage`. Returns two times [tokens], nats; the second is None without a reference.
    """
    if reference is None:
        return teacher - student, None
    beyond = (lambda_ - 1) * (teacher - reference)
    return teacher - student, beyond if clamp is None else beyond.clamp(-clamp, clamp)


def refuse_no_reference(lambda_: float | Tensor, reference: Tensor | None) -> None:
    """Raises ValueError."""
    if reference is None and bool(torch.as_tensor(lambda_ != 1).any()):
        raise ValueError(f"lambda = {lambda_} needs the reference's log-probs")
