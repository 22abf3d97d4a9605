"""What a rank of test_routing_replay does: a step of a student whose rows tell which experts to take."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_gopd.data.trajectory import RoutedExperts, Trajectory
from megatron_gopd.objective import gopd_loss
from megatron_gopd.policies.student import Student
from megatron_gopd.ranks import on_first
from tests.policies.steps_on_ranks import CAP, LAMBDA, batch, settings, weights_of
from tests.tiny_models import EXPERTS, SIZES

BUDGET = 48  # several micro-batches, of several rows
SGD = {"type": "sgd", "lr": 1.0, "clip_grad": 1.0}  # a step is the clipped gradient itself
UNTOLD, SHORT = 1, 3  # rows: of one nothing is known, of one nothing of its last positions


def routed_batch() -> list[Trajectory]:
    """Experts at random: most of them no router would choose."""
    random, trajectories = np.random.default_rng(2), batch()
    shape = SIZES["num_hidden_layers"], EXPERTS["num_experts"]
    for number, each in enumerate(trajectories):
        positions = len(each.prompt.student_tokens) + len(each) - 1
        chosen = random.random((positions, *shape)).argsort(-1)[..., : EXPERTS["num_experts_per_tok"]].astype(np.uint8)
        if number != UNTOLD:
            each.routed_experts = RoutedExperts.of(chosen[: positions - 5 * (number == SHORT)])
    return trajectories


def replayed(folder: Path, cases: dict[str, tuple[str, dict]]) -> dict[str, tuple]:
    """{case: log-probs by Student.logprobs, the Update, the weights after it}, of {case: (layout, keys)}."""
    return {case: _replayed(folder, layout, keys) for case, (layout, keys) in cases.items()}


def _replayed(folder: Path, layout: str, keys: dict) -> tuple:
    config = settings(folder, layout=layout, budget=BUDGET, student=keys, **SGD)
    rollout = config.rollout.model_copy(update={"replay_routing": True})  # which the schema wants servers for
    student = Student(config.model_copy(update={"rollout": rollout}))
    batch = on_first(routed_batch)
    before = student.logprobs(batch)
    return before, student.update(batch, gopd_loss(LAMBDA, CAP)), weights_of(student)
