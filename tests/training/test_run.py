"""What a whole run leaves behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_gopd.config import load_config
from tests.chat_models import prompt_tokens
from tests.tiny_models import load_plain
from tests.training.runs_on_ranks import TEACHERS, metrics_of

METRICS = {
    *"step loss reverse_kl advantage_mean entropy grad_norm lr response_tokens_mean truncated_fraction".split(),
    *"train_rollout_logprob_abs_diff train_rollout_logprob_abs_diff_max staleness_mean staleness_max".split(),
    *("tokens_per_s", "reward"),
    *("advantage_variance", "rollout_correction", "correction_clipped"),
    *(
        f"{name}/{teacher}"
        for name in ("reverse_kl", "reward", "advantage_mean", "teacher_tokens")
        for teacher in TEACHERS
    ),
    *(f"timing/{phase}_s" for phase in ("rollout", "score", "grade", "train", "sync", "checkpoint", "step")),
    "timing/wait_for_score_s",
}


@pytest.fixture(scope="module")
def run(make_config, distill) -> SimpleNamespace:
    """Run twice with one configuration."""
    from megatron_gopd.mcore.copies import copies

    copies.cache_clear()  # what other tests of this process had copied
    config = make_config(checkpoint={"resume": "never"})
    distill(config)
    job = distill(config)
    return SimpleNamespace(config=config, job=job, folder=Path(config.run.folder, "first"))


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def exported(model) -> dict:
    from megatron_gopd.mcore import weights

    return {name: tensor.clone() for name, tensor in weights.export(model)}


def same(weights: dict, others: dict) -> bool:
    return weights.keys() == others.keys() and all(bool((weights[name] == others[name]).all()) for name in weights)


def test_metrics_have_a_row_a_step(run):
    assert [row["step"] for row in rows(run.folder / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_a_row_has_every_metric(run):
    for row in rows(run.folder / "metrics.jsonl"):
        assert row.keys() == METRICS
        assert all(math.isfinite(value) for value in row.values())


def test_the_engine_s_logprobs_are_the_student_s(run):
    for row in rows(run.folder / "metrics.jsonl"):
        assert row["train_rollout_logprob_abs_diff_max"] < 1e-4  # after each sync, in float32


def test_the_student_learns(run):
    assert not same(exported(run.job.student.model), dict(load_plain(run.config.student.model).named_parameters()))


def test_samples_tell_prompt_response_and_teacher(run):
    samples = rows(run.folder / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [1, 2, 3, 4, 5]
    for sample in samples:
        assert sample["teacher"] == TEACHERS[int(sample["id"].removeprefix("train-")) % 2]
        assert sample["prompt"].startswith("<|im_start|>user\nWhat is 0 plus ")
        assert sample["response"]
        assert sample["reward"] in (0.0, 1.0)


def test_the_written_configuration_is_that_of_the_run(run):
    assert load_config(run.folder / "config.yaml") == run.config


def test_the_final_model_is_the_student(run):
    assert same(dict(load_plain(run.folder / "model").named_parameters()), exported(run.job.student.model))


def test_the_engine_ends_with_the_student_s_weights(run):
    assert same(dict(run.job.rollout.model.named_parameters()), exported(run.job.student.model))


def test_the_final_model_answers(run):
    import torch
    from transformers import AutoTokenizer

    answer = load_plain(run.folder / "model").generate(torch.tensor([prompt_tokens("?")]), max_new_tokens=3)
    assert AutoTokenizer.from_pretrained(run.folder / "model").decode(answer[0]).startswith("<|im_start|>user\n?")


def test_everything_that_was_printed_is_logged_after_the_machine(run):
    lines = [line.split(": ", 1) for line in (run.folder / "logs" / "latest" / "rank-0.log").read_text().splitlines()]
    printed = [text for source, text in lines if source.endswith("megatron_gopd.console")]
    assert printed[0].startswith(
        f"{run.folder}: gopd, 5 steps | cpu, 1 rank | student student float32, dp=1 | teacher "
    )
    assert [text.split(" |")[0] for text in printed if text.startswith("step ")] == [f"step {n}/5" for n in range(1, 6)]
    assert any('"host": ' in text and '"torch": ' in text for _, text in lines)


def test_the_attempt_has_a_manifest_of_host_versions_and_command(run):
    about = json.loads((run.folder / "logs" / "latest" / "manifest.json").read_text())
    assert about.keys() == {"host", "versions", "pid", "ranks", "command", "begun"}
    assert {"python", "megatron-gopd", "torch", "megatron-core"} <= about["versions"].keys()


def test_nothing_half_written_is_left(run):
    assert {path.name for path in run.folder.iterdir()} == {
        *(".lock", "config.yaml", "curve.png", "logs", "metrics.jsonl", "model", "samples.jsonl"),
        "trajectories",
    }


def test_the_same_configuration_gives_the_same_metrics_bit_by_bit(run):
    first = run.folder / "logs" / "attempt-1" / "metrics.jsonl"
    assert metrics_of(run.folder / "metrics.jsonl") == metrics_of(first)


def test_the_second_run_is_another_attempt(run):
    assert (run.folder / "logs" / "latest").resolve().name == "attempt-2"


@pytest.mark.parametrize("teacher", TEACHERS)
def test_teachers_are_frozen(run, teacher):
    with run.job.scorers.teacher(teacher) as held:
        weights = exported(held)
    assert same(weights, dict(load_plain(run.config.teachers[teacher].model).named_parameters()))


def test_a_run_on_converted_models_is_the_run_on_the_originals(run, make_config, distill, chat_models, tmp_path):
    from megatron_gopd.mcore.convert import hf_to_megatron

    for name in ("student", "teacher"):
        hf_to_megatron(chat_models[name], tmp_path / name)
    student = run.config.student.model_copy(update={"model": str(tmp_path / "student")})
    strong = run.config.teachers["strong"].model_copy(update={"model": str(tmp_path / "teacher")})
    config = make_config("converted", student=student, teachers=run.config.teachers | {"strong": strong})
    distill(config)
    original = metrics_of(run.folder / "metrics.jsonl")
    assert metrics_of(Path(config.run.folder, "converted", "metrics.jsonl")) == original
