"""Several ranks distill as one does: the same trajectories, the same updates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_gopd.config import Config
from tests.chat_models import save_chat_model
from tests.ranks import on_ranks
from tests.tiny_models import EXPERTS
from tests.training.runs_on_ranks import TEACHERS, distill_all, kept, metrics_of, own_reward, two_teachers

LAYOUTS = {
    "dp": {},
    "tp": {"tp": 2},
    "tp-sp": {"tp": 2, "sequence_parallel": True},
    "pp": {"pp": 2},
    "cp": {"cp": 2},
    "first": {"ranks": [0, 0]},
    "apart": {"ranks": [0, 0]},  # and the teachers on the other rank
}


@pytest.fixture(scope="module")
def two_ranks(chat_models, questions, tmp_path_factory) -> Path:
    """The folder of one run for each layout."""
    folder = tmp_path_factory.mktemp("two-ranks")
    trees = {name: two_teachers(chat_models, questions, folder, name, layout) for name, layout in LAYOUTS.items()}
    for teacher in trees["apart"]["teachers"].values():
        teacher["layout"] = {"ranks": [1, 1]}
    more = [grpo(chat_models, questions, folder, {"tp": 2}), exact(chat_models, questions, folder, LAYOUTS["tp-sp"])]
    on_ranks(2, distill_all, trees=[*trees.values(), *more])
    return folder


def grpo(chat_models, questions, folder: Path, layout: dict) -> dict:
    """Two mini-batches a step, rewards by a function, a KL to the reference.

    By SGD: at the start that KL's gradient is rounding alone, which Adam would make as large as any.
    """
    tree = two_teachers(chat_models, questions, folder, "grpo", layout, teachers={}, rewards=own_reward(folder))
    tree["algorithm"] = {"type": "grpo", "mini_batches": 2, "kl_coefficient": 0.1}
    tree["rollout"] |= {"samples_per_prompt": 2}
    tree["optimizer"] = {"type": "sgd", "lr": 0.3}
    return tree


def exact(chat_models, questions, folder: Path, layout: dict) -> dict:
    tree = two_teachers(chat_models, questions, folder, "exact", layout)
    return tree | {"algorithm": {"gradient": "exact", "lambda": 1.25}}


@pytest.fixture(scope="module")
def alone(two_ranks, make_config, distill) -> SimpleNamespace:
    config = make_config()
    distill(config)
    folder = Path(config.run.folder, "first")
    return SimpleNamespace(metrics=metrics_of(folder / "metrics.jsonl"), trajectories=kept(folder))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_follow_one(two_ranks, alone, layout):
    rows = metrics_of(two_ranks / layout / "metrics.jsonl")
    assert len(rows) == len(alone.metrics)
    for row, expected in zip(rows, alone.metrics, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_keep_the_trajectories_of_one(two_ranks, alone, layout):
    """All of them: eight responses a step, of which ten would be kept. Values before any update has rounded."""
    rows, expected = (
        {(row["step"], row["id"]): row for row in each} for each in (kept(two_ranks / layout), alone.trajectories)
    )
    assert rows.keys() == expected.keys()
    assert len(rows) == 40
    for key in (key for key in rows if key[0] == 1):
        row, other = rows[key], expected[key]
        assert row["response_tokens"] == other["response_tokens"]
        for name in ("student_logprobs", "teacher_logprobs", "reference_logprobs", "entropy", "advantage"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-4)


def test_grpo_on_two_ranks_follows_one(two_ranks, chat_models, questions, distill, tmp_path):
    distill(Config.model_validate(grpo(chat_models, questions, tmp_path, {})))
    rows, alone = (metrics_of(folder / "grpo" / "metrics.jsonl") for folder in (two_ranks, tmp_path))
    for row, expected in zip(rows, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_exact_on_two_ranks_follows_one(two_ranks, chat_models, questions, distill, tmp_path):
    distill(Config.model_validate(exact(chat_models, questions, tmp_path, {})))
    rows, alone = (metrics_of(folder / "exact" / "metrics.jsonl") for folder in (two_ranks, tmp_path))
    for row, expected in zip(rows, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert row["target_kl"] > 0
    whole, others = (
        {row["id"]: row for row in kept(each / "exact") if row["step"] == 1} for each in (two_ranks, tmp_path)
    )
    for id, row in whole.items():
        for name in ("target_kl", "teacher_logprobs", "reference_logprobs", "advantage", "advantage_beyond_teacher"):
            assert row[name] == pytest.approx(others[id][name], rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def mixtures(chat_models, tmp_path_factory) -> dict[str, Path]:
    """A student with experts, and a teacher with others."""
    folder = tmp_path_factory.mktemp("mixtures")
    experts = EXPERTS | {"moe_intermediate_size": 32, "num_experts": 4}
    saved = {
        name: save_chat_model(folder / name, seed=seed, family="Qwen3Moe", **experts)
        for seed, name in enumerate(("student", "teacher"), 7)
    }
    return chat_models | {"moe": saved["teacher"], "moe-student": saved["student"]}


def three_roles(models, questions, folder, name: str, spread: bool) -> dict:
    """A student with experts, a teacher with experts and a dense reference; `spread`: each in a layout of its own."""
    layouts = {"student": {"tp": 2, "pp": 2}, "teacher": {"ep": 4}, "reference": {"cp": 2, "ranks": [2, 3]}}
    roles = {"student": "moe-student", "teacher": "moe", "reference": "other"}
    held = {
        role: {"model": str(models[model]), "dtype": "float32", "layout": layouts[role] if spread else {}}
        for role, model in roles.items()
    }
    tree = two_teachers(models, questions, folder, name, rewards="none")
    tree["run"]["steps"] = 5
    tree["student"] = held["student"]
    tree["teachers"] = {teacher: held["teacher"] | {"reference": held["reference"]} for teacher in TEACHERS}
    return tree


@pytest.mark.slow
@pytest.mark.parametrize("case", ["ep", "three-roles"])
def test_experts_and_three_layouts_follow_one_process(mixtures, questions, distill, tmp_path, case):
    tree = three_roles(mixtures, questions, tmp_path, "spread", spread=case == "three-roles")
    if case == "ep":
        tree["student"]["layout"] = {"ep": 2}
    on_ranks(4 if case == "three-roles" else 2, distill_all, trees=[tree])
    distill(Config.model_validate(three_roles(mixtures, questions, tmp_path, "alone", spread=False)))
    spread, alone = (metrics_of(tmp_path / name / "metrics.jsonl") for name in ("spread", "alone"))
    for row, expected in zip(spread, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_only_the_first_rank_writes_metrics_and_every_rank_its_log(two_ranks):
    attempt = two_ranks / "dp" / "logs" / "attempt-1"
    assert sorted(path.name for path in attempt.iterdir()) == ["manifest.json", "rank-0.log", "rank-1.log"]
