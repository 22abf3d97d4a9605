"""What a rank of test_schedules does: updates whose LM head holds its weight's gradient, or need not."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np

from megatron_gopd.kernels import one_pass
from megatron_gopd.kernels.job import WeightGradient
from megatron_gopd.objective import gopd_loss
from megatron_gopd.policies.student import Student
from tests.policies.steps_on_ranks import CAP, LAMBDA, batch, settings, weights_of

BUDGET = 48  # several micro-batches


def updated(folder: Path, layout: str, held: bool, student: dict) -> dict:
    """Two updates: gradient norms, the weights after them, and whether a [V, h] beside main_grad was ever taken."""
    keys = {"layout": layout, "student": student, "budget": BUDGET, "type": "adam", "lr": 1e-3, "eps": 1e-5}
    made = Student(settings(folder, **keys))
    if held:
        made.model.config.grad_scale_func = lambda loss: 1.0 * loss  # what it multiplies by is not known beforehand
    taken = []

    class Watched(WeightGradient):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            taken.append(self.buffer is not None and not self.into_main_grad)

    with mock.patch.object(one_pass, "WeightGradient", Watched):
        norms = [made.update(batch(), gopd_loss(LAMBDA, CAP)).grad_norm for _ in range(2)]
    return {"norms": norms, "weights": weights_of(made), "taken": taken}


def all_schedules(
    folders: dict[str, Path], schedules: dict[str, tuple[str, dict]]
) -> dict[tuple, dict[str, np.ndarray]]:
    """{(model, schedule, held): updated(...)} of schedules {name: (layout, keys of the student)}."""
    return {
        (name, schedule, held): updated(folder, layout, held, student)
        for name, folder in folders.items()
        for schedule, (layout, student) in schedules.items()
        for held in (False, True)
    }
