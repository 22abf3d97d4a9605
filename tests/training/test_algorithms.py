"""GRPO and SFT end to end: what their runs compute, record and continue."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_gopd.config import Config
from tests.chat_models import write_questions
from tests.training.runs_on_ranks import interrupted, kept, metrics_of, own_reward

FP32 = {"dtype": "float32"}
METRICS = {
    *"step loss advantage_mean clip_fraction entropy grad_norm lr response_tokens_mean truncated_fraction".split(),
    *"train_rollout_logprob_abs_diff train_rollout_logprob_abs_diff_max staleness_mean staleness_max".split(),
    "zero_advantage_groups",
    *("reward", "reference_kl", "advantage_variance", "rollout_correction", "correction_clipped"),
}


@pytest.fixture(scope="module")
def tree(chat_models, tmp_path_factory):
    """tree(name, algorithm, **sections): a run of the tiny student on eight prompts, whose data holds responses."""
    folder = tmp_path_factory.mktemp("algorithms")
    data = write_questions(folder / "train.jsonl", 8, response="7", label="7")

    def tree(name: str, algorithm: dict, **sections) -> dict:
        return {
            "run": {"name": name, "steps": 4, "folder": str(folder)},
            "student": {"model": str(chat_models["student"])} | FP32,
            "algorithm": algorithm,
            "data": {"train": str(data), "batch_size": 4},
            "rollout": {"max_response_tokens": 8},
            "optimizer": {"lr": 3e-3},
        } | sections

    return tree


def rows(tree: dict) -> list[dict]:
    return metrics_of(Path(tree["run"]["folder"], tree["run"]["name"], "metrics.jsonl"))


# ---------------------------------------------------------------- GRPO
@pytest.fixture(scope="module")
def grpo(tree, distill) -> dict:
    """Two optimizer steps a batch, a KL to the reference, a reward of the user's own, checkpoints."""
    algorithm = {"type": "grpo", "mini_batches": 2, "kl_coefficient": 0.1}
    rollout = {"max_response_tokens": 8, "samples_per_prompt": 3}
    run = tree("grpo", algorithm, rollout=rollout, checkpoint={"every": 2, "keep": 9})
    run["rewards"] = own_reward(Path(run["run"]["folder"]))
    distill(Config.model_validate(run))
    return run


def test_a_row_of_grpo_has_its_own_metrics_and_no_teacher_s(grpo):
    assert [set(row) for row in rows(grpo)] == [METRICS] * 4


def test_the_second_of_two_optimizer_steps_is_off_policy(grpo):
    """The clip holds some tokens of the second mini-batch; on the weights of the engine the two agree."""
    assert all(0 < row["clip_fraction"] < 0.5 for row in rows(grpo))
    assert max(row["train_rollout_logprob_abs_diff_max"] for row in rows(grpo)) < 1e-4


def test_the_reference_is_the_initial_student(grpo):
    """Zero where the first mini-batch is asked; what the second reports has moved by one step."""
    first, *others = [row["reference_kl"] for row in rows(grpo)]
    assert 0 < first < min(others)


def test_an_interrupted_grpo_goes_on_bit_for_bit(grpo, distill, tmp_path):
    again = interrupted(grpo, after=2, folder=tmp_path)
    distill(Config.model_validate(again))
    assert rows(again) == rows(grpo)
    weights = [Path(each["run"]["folder"], "grpo", "model", "model.safetensors").read_bytes() for each in (again, grpo)]
    assert weights[0] == weights[1]


def test_mini_batches_are_equal_and_groups_stay_together():
    from types import SimpleNamespace

    from megatron_gopd.training.grpo import mini_batches

    batch = [SimpleNamespace(prompt=SimpleNamespace(id=str(n % 6)), sample=n // 6) for n in range(12)]
    parts = mini_batches(batch, 3, [1, 2])
    assert [len(part) for part in parts] == [4, 4, 4]
    assert all(len({each.prompt.id for each in part}) == 2 for part in parts)
    assert parts == mini_batches(batch[::-1], 3, [1, 2])  # whatever order they came in


def test_what_grpo_keeps_has_its_columns_and_no_teacher_s(grpo):
    for row in kept(Path(grpo["run"]["folder"], "grpo")):
        assert row["teacher_logprobs"] is row["advantage_of_teacher"] is row["lambda"] is None
        assert len(row["clip_fraction"]) == len(row["reference_kl"]) == len(row["advantage"]) == len(row["pieces"])
        assert row["advantage"][0] == pytest.approx(row["outcome"])


# ---------------------------------------------------------------- SFT
def test_sft_on_the_data_learns_it_and_files_of_problems_tell(tree, distill):
    """The answer is 7 to all; the benchmark is a file of the user's own, answered with the weights of the step."""
    run = tree("data", {"type": "sft"}, optimizer={"lr": 2e-2}, rewards="exact")
    run["run"]["steps"] = 16
    run["evaluation"] = {"suites": [run["data"]["train"]], "suite_samples": 2, "every": 8}
    distill(Config.model_validate(run))
    folder = Path(run["run"]["folder"], "data", "evaluation")
    accuracy = {}
    for when in ("before", "step-8", "after"):
        answers = [json.loads(line) for line in (folder / when / "train.jsonl").read_text().splitlines()]
        assert [(row["id"], row["sample"]) for row in answers] == [(f"train-{i}", s) for i in range(8) for s in (0, 1)]
        accuracy[when] = json.loads((folder / when / "summary.json").read_text())["suites"][0]["accuracy"]["mean"]
        assert accuracy[when] == np.mean([row["score"] for row in answers])
    assert accuracy["before"] < 0.5
    assert accuracy["after"] > 0.9
    found = {row["step"]: row for row in rows(run)}
    assert [found[step]["eval/train"] for step in (8, 16)] == [accuracy["step-8"], accuracy["after"]]
    assert not (folder / "step-16").exists()  # the last step is asked once
    assert found[16]["loss"] < 0.1 < found[1]["loss"]
    assert not {"advantage_mean", "reverse_kl", "staleness_mean", "reward"} & set(found[1])


@pytest.fixture(scope="module")
def taught(tree, chat_models, distill):
    """SFT from two teachers, one of which reads more than the student: the job after the run."""
    strong = {"model": str(chat_models["teacher"])} | FP32
    hinted = {"model": str(chat_models["other"]), "prompt": {"suffix": "Be short."}} | FP32
    run = tree("taught", {"type": "sft"}, teachers={"strong": strong, "hinted": hinted})
    names = ("strong", "hinted")
    data = write_questions(Path(run["run"]["folder"]) / "two.jsonl", 8, opd_teacher=lambda n: names[n % 2])
    run["data"] = {"train": str(data), "batch_size": 8}
    run["checkpoint"] = {"every": 2, "keep": 9}
    return distill(Config.model_validate(run))


def test_an_interrupted_sft_goes_on_bit_for_bit(taught, distill, tmp_path):
    whole = taught.config.model_dump(mode="json", by_alias=True)
    again = interrupted(whole, after=2, folder=tmp_path)
    distill(Config.model_validate(again))
    assert rows(again) == rows(whole)
    assert [row["step"] for row in rows(again)] == [1, 2, 3, 4]


def test_every_response_is_its_teacher_s(taught):
    from tests.servers.test_client import logprobs_of
    from tests.tiny_models import load_plain

    models = {name: load_plain(teacher.model) for name, teacher in taught.config.teachers.items()}
    batch = [each for chunk in taught.source.generate(taught.loader.prompts, 1) for each in chunk]
    assert {each.prompt.id for each in batch} == {prompt.id for prompt in taught.loader.prompts}
    for each in batch:
        expected = logprobs_of(models[each.prompt.teacher], each.prompt.teacher_tokens, each.response_tokens)
        np.testing.assert_allclose(each.behaviour_logprobs, expected, rtol=0, atol=2e-5)
        assert "Be short." not in taught.tokenizers.student.decode(each.prompt.student_tokens)


def test_what_sft_keeps_has_log_probs_and_no_advantage(taught):
    for row in kept(Path(taught.config.run.folder, "taught")):
        assert len(row["student_logprobs"]) == len(row["behaviour_logprobs"]) == len(row["pieces"])
        assert "advantage" not in row
        assert row["teacher_logprobs"] is None


def test_sft_holds_neither_scorers_nor_an_engine_it_does_not_need(taught):
    assert taught.scorers._models == {}
    assert taught.rollout is None


# ---------------------------------------------------------------- distillation with a reward
def test_a_reward_is_mixed_into_the_distillation(tree, chat_models, distill):
    teachers = {"t": {"model": str(chat_models["teacher"])} | FP32}
    rollout = {"max_response_tokens": 8, "samples_per_prompt": 4}
    run = tree("mixed", {"reward_weight": 0.5}, teachers=teachers, rollout=rollout)
    run["run"]["steps"] = 1
    run["rewards"] = own_reward(Path(run["run"]["folder"]))
    distill(Config.model_validate(run))
    assert {"reverse_kl/t", "reward/t", "zero_advantage_groups"} <= set(rows(run)[0])
