"""The probe against transformers: exact divergences, on which continuations."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.config import Config
from tests.chat_models import write_questions
from tests.tiny_models import load_plain

LIMIT, TOKENS, TEMPERATURE = 4, 6, 0.9
SUFFIX = {"suffix": "Be short."}


@pytest.fixture(scope="module")
def copy_of_student(chat_models, tmp_path_factory):
    return shutil.copytree(chat_models["student"], tmp_path_factory.mktemp("copies") / "student")


@pytest.fixture(scope="module")
def build(chat_models, one_rank, tmp_path_factory):
    """build(teacher folder, prompt) -> the job of a student, its probe, and its settings."""

    def build(teacher, prompt="student_tokens") -> SimpleNamespace:
        from megatron_gopd.evaluation.probe import Probe
        from megatron_gopd.training.job import build_job

        data = str(write_questions(tmp_path_factory.mktemp("data") / "prompts.jsonl", 6))
        model = {"model": str(chat_models["student"]), "dtype": "float32"}
        tree = {
            "run": {"name": "probe", "steps": 1},
            "student": model,
            "teachers": {"teacher": {"model": str(teacher), "dtype": "float32", "prompt": prompt}},
            "data": {"train": data, "batch_size": 2},
            "rollout": {"temperature": TEMPERATURE, "max_response_tokens": 3},
            "evaluation": {"prompts": data, "limit": LIMIT, "max_response_tokens": TOKENS},
        }
        config = Config.model_validate(tree)
        job = build_job(config)
        return SimpleNamespace(job=job, probe=Probe(config, job.tokenizers, job.student, job.scorers))

    return build


@pytest.fixture(scope="module")
def measured(build, chat_models):
    """A probe that measured the student, then another one in its place; with the continuations of each."""
    from megatron_gopd.mcore import weights

    built = build(chat_models["teacher"], SUFFIX)
    job, probe = built.job, built.probe
    first, before = continuations(job, probe), probe.measure(job.rollout)
    weights.load(job.student.model, chat_models["other"])
    job.rollout.sync(job.student)
    second, after = continuations(job, probe), probe.measure(job.rollout)
    return SimpleNamespace(probe=probe, first=first, before=before, second=second, after=after)


def continuations(job, probe) -> list[list[int]]:
    """What the engine samples for the held-out prompts: the same at every call, so the probe's too."""
    chunks = job.rollout.generate(probe.prompts, 0, samples=1, max_tokens=TOKENS)
    return [trajectory.response_tokens.tolist() for chunk in chunks for trajectory in chunk]


def law(folder, prompt: list[int], response: list[int]) -> np.ndarray:
    """[response, V] log-probs, float64."""
    import torch

    with torch.no_grad():
        logits = load_plain(folder)(torch.tensor([[*prompt, *response]])).logits[0].double()
    return (logits / TEMPERATURE).log_softmax(-1)[len(prompt) - 1 : -1].numpy()


def reverse_kl(student, teacher, prompts, responses) -> list[float]:
    """Token means of KL(student || teacher), each model reading its own prompt."""
    values = []
    for prompt, response in zip(prompts, responses, strict=True):
        ours, theirs = law(student, prompt.student_tokens, response), law(teacher, prompt.teacher_tokens, response)
        values.append((np.exp(ours) * (ours - theirs)).sum(1).mean())
    return values


def close(values, expected) -> bool:
    return np.allclose(values, expected, rtol=0, atol=1e-4)


def test_a_student_is_at_no_distance_from_itself(build, copy_of_student):
    built = build(copy_of_student)
    measurement = built.probe.measure(built.job.rollout)
    assert measurement.reverse_kl_fresh == pytest.approx([0.0] * LIMIT, abs=1e-7)


def test_another_prompt_sets_the_same_weights_apart(build, copy_of_student):
    built = build(copy_of_student, SUFFIX)
    assert min(built.probe.measure(built.job.rollout).reverse_kl_fresh) > 1e-3


def test_the_first_prompts_are_measured(measured):
    assert [prompt.id for prompt in measured.probe.prompts] == [f"prompts-{n}" for n in range(LIMIT)]


def test_the_divergence_is_exact(measured, chat_models):
    folders = chat_models["student"], chat_models["teacher"]
    expected = reverse_kl(*folders, measured.probe.prompts, measured.first)
    assert close(measured.before.reverse_kl_fresh, expected)
    assert measured.before.reverse_kl_fixed == measured.before.reverse_kl_fresh


def test_the_second_measure_keeps_the_first_continuations(measured, chat_models):
    folders = chat_models["other"], chat_models["teacher"]
    assert measured.first != measured.second
    assert close(measured.after.reverse_kl_fixed, reverse_kl(*folders, measured.probe.prompts, measured.first))


def test_fresh_continuations_are_the_student_s_of_now(measured, chat_models):
    folders = chat_models["other"], chat_models["teacher"]
    assert close(measured.after.reverse_kl_fresh, reverse_kl(*folders, measured.probe.prompts, measured.second))


def test_the_entropy_is_the_student_s_on_its_fresh_continuations(measured, chat_models):
    pairs = zip(measured.probe.prompts, measured.second, strict=True)
    laws = [law(chat_models["other"], prompt.student_tokens, response) for prompt, response in pairs]
    assert close(measured.after.entropy, [-(np.exp(ours) * ours).sum(1).mean() for ours in laws])


def test_lengths_are_those_of_the_fresh_continuations(measured):
    assert measured.after.response_tokens == [float(len(tokens)) for tokens in measured.second]


def test_the_teacher_s_continuations_answer_its_own_prompt(measured, chat_models, one_rank):
    """And stay the same, while the student that scores them changes."""
    from dataclasses import replace

    from megatron_gopd.rollout import EmbeddedEngine

    settings = {"dtype": "float32", "max_response_tokens": TOKENS, "temperature": TEMPERATURE}
    asked = [replace(prompt, student_tokens=prompt.teacher_tokens) for prompt in measured.probe.prompts]
    (written,) = EmbeddedEngine(chat_models["teacher"], **settings).generate(asked, 0)
    for name, measurement in {"student": measured.before, "other": measured.after}.items():
        expected = []
        for prompt, answer in zip(measured.probe.prompts, written, strict=True):
            logprobs = law(chat_models[name], prompt.student_tokens, answer.response_tokens)
            expected.append(-np.take_along_axis(logprobs, np.array(answer.response_tokens)[:, None], 1).mean())
        assert close(measurement.teacher_nll, expected)


def test_greedy_answers_are_of_the_weights_of_now(measured):
    before, after = measured.before.greedy, measured.after.greedy
    assert [answer["prompt"] for answer in before] == ["What is 0 plus 0?", "What is 0 plus 1?"]
    assert before != after


def test_a_comparison_pairs_prompt_by_prompt(measured):
    from megatron_gopd.evaluation.probe import compare

    rows = {name: difference for name, _, _, difference, _ in compare(measured.before, measured.after)}
    differences = np.subtract(measured.after.reverse_kl_fixed, measured.before.reverse_kl_fixed)
    estimate = rows["reverse KL, fixed continuations (nats/token)"]
    assert estimate.standard_error == pytest.approx(differences.std(ddof=1) / LIMIT**0.5)
