"""Which models a job holds, and who is asked about what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.tiny_models import load_plain


@pytest.fixture(scope="module")
def build(make_config, one_rank):
    """build(lambda) -> a job"""

    def build(lambda_: float):
        from megatron_gopd.training.job import build_job

        return build_job(make_config(algorithm={"lambda": lambda_}))

    return build


@pytest.fixture(scope="module")
def job(build):
    return build(1.25)


def asked(job, teacher: str) -> tuple[Counter, list]:
    """How often each model of the job runs to score a chunk of this teacher's trajectories; and the chunk."""
    calls = Counter()
    hooks = [
        model.module.register_forward_hook(lambda *_, name=name: calls.update([_folder(name)]))
        for name, model in job.scorers._models.items()
    ]
    prompts = [prompt for prompt in job.loader.prompts if prompt.teacher == teacher]
    (chunk,) = job.rollout.generate(prompts, 1)
    job.scorers.score(chunk)
    for hook in hooks:
        hook.remove()
    return calls, chunk


def _folder(identity: str) -> str:
    import json

    return Path(json.loads(identity)["model"]).name


def held(job) -> list[str]:
    return sorted(map(_folder, job.scorers._models))


def test_each_frozen_model_is_held_once(job):
    """The initial student is the teacher `short` and its reference."""
    assert held(job) == ["other", "student", "teacher"]


def test_no_reference_is_held_at_lambda_1(build):
    assert held(build(1.0)) == ["student", "teacher"]


def test_no_reference_is_asked_at_lambda_1(build):
    calls, chunk = asked(build(1.0), "strong")
    assert calls == {"teacher": 1}
    assert all(trajectory.reference_logprobs is None for trajectory in chunk)


@pytest.mark.parametrize(("teacher", "models"), [("short", {"student": 2}), ("strong", {"teacher": 1, "other": 1})])
def test_a_trajectory_is_scored_by_its_own_teacher_and_reference_only(job, teacher, models):
    assert asked(job, teacher)[0] == models


def test_the_teacher_alone_reads_the_suffix(job):
    _, (trajectory, *_) = asked(job, "short")
    text = job.tokenizers.student.decode(trajectory.prompt.teacher_tokens)
    assert "Be short." in text
    assert "Be short." not in job.tokenizers.student.decode(trajectory.prompt.student_tokens)
    assert abs(trajectory.teacher_logprobs - trajectory.reference_logprobs).max() > 1e-3


def test_the_reference_of_the_initial_student_is_the_student(job):
    _, chunk = asked(job, "short")
    for trajectory in chunk:
        assert abs(trajectory.reference_logprobs - trajectory.behaviour_logprobs).max() < 1e-5


def test_loading_teachers_leaves_the_student_as_it_was(job):
    plain = dict(load_plain(job.config.student.model).named_parameters())
    for name, tensor in job.student.export():
        assert bool((tensor == plain.pop(name)).all()), name
    assert not plain
