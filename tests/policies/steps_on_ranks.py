"""What a rank of test_student does, and the scored batch it learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_gopd.config import Config, Layout
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.objective import gopd_loss
from megatron_gopd.policies.student import Student
from tests.tiny_models import VOCABULARY

LAMBDA, CAP, TEMPERATURE = 1.25, 5.0, 0.8
LENGTHS = [(3, 5), (40, 1), (1, 60), (17, 24), (5, 5)]  # prompt, response


def batch(lengths=LENGTHS) -> list[Trajectory]:
    """Trajectories with made-up log-probs, around those of an untrained model."""
    random = np.random.default_rng(1)

    def logprobs(length: int) -> np.ndarray:
        return random.normal(-np.log(VOCABULARY), 0.7, length).astype(np.float32)

    trajectories = []
    for number, (prompt, response) in enumerate(lengths):
        tokens, answer = (random.integers(0, VOCABULARY, length).tolist() for length in (prompt, response))
        asked = Prompt(f"p{number}", [], None, "teacher", tokens, tokens, tokens, f"train.jsonl:{number + 1}")
        scores = {"teacher_logprobs": logprobs(response), "reference_logprobs": logprobs(response)}
        trajectories.append(Trajectory(asked, 0, np.array(answer, np.int32), logprobs(response), "stop", **scores))
    return trajectories


def settings(
    folder: Path,
    *,
    layout="",
    dtype="float32",
    budget=4096,
    aggregation="sequence_mean",
    logprob="fused",
    student=None,
    **optimizer,
):
    """The configuration of a student; `student` are further keys of its section, `optimizer` those of that one."""
    return Config.model_validate(
        {
            "run": {"name": "test", "steps": 10},
            "student": {"model": str(folder), "layout": Layout.parse(layout), "dtype": dtype} | (student or {}),
            "teachers": {"teacher": {"model": "/teacher"}},
            "algorithm": {"lambda": LAMBDA, "loss_aggregation": aggregation},
            "data": {"train": "train.jsonl", "batch_size": 1},
            "rollout": {"temperature": TEMPERATURE},
            "training": {"max_tokens_per_micro_batch": budget, "logprob": logprob},
            "optimizer": {"weight_decay": 0.0} | optimizer,
        }
    )


def weights_of(student: Student, receivers: list[int] | None = None) -> dict[str, np.ndarray]:
    return {name: tensor.float().cpu().numpy().copy() for name, tensor in student.export(receivers)}


def export_to_first(folder: Path, layout: str) -> dict[str, np.ndarray]:
    return weights_of(Student(settings(folder, layout=layout)), [0])


def take_steps(folder: Path, steps: int, **keys) -> tuple[list, dict[str, np.ndarray]]:
    """The Update of every step, and the weights after the last, by Hugging Face name."""
    student = Student(settings(folder, **keys))
    updates = [student.update(batch(), gopd_loss(LAMBDA, CAP)) for _ in range(steps)]
    return updates, weights_of(student)


def take_all(folders: dict[str, Path], layouts: list[str], cases: dict[str, dict], steps: int) -> dict:
    """{(model, layout, case): take_steps(...)}"""
    return {
        (name, layout, case): take_steps(folder, steps, layout=layout, **keys)
        for name, folder in folders.items()
        for layout in layouts
        for case, keys in cases.items()
    }
