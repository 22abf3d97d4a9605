"""The paper's claims, asked of runs whose answers are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_gopd.evaluation.study.claims import findings
from megatron_gopd.evaluation.study.scores import Measured
from megatron_gopd.evaluation.study.settings import Study
from megatron_gopd.evaluation.study.verdicts import FAILS, HOLDS, OPEN, Evidence, above_zero, near_zero, somewhere_below
from tests.evaluation.study.conftest import CODE, MATH, STUDENT
from tests.evaluation.study.written import LARGE


def verdicts(root: Path) -> dict[str, str]:
    return {finding.claim.text: finding.verdict for finding in findings(Study([root]))}


def about(found: dict[str, str], *words: str) -> str:
    """The verdict on the one claim that has all of these words."""
    (verdict,) = [verdict for text, verdict in found.items() if all(word in text for word in words)]
    return verdict


@pytest.fixture
def models(folder) -> dict[str, str]:
    found = {name: folder.model(name) for name in ("student", "math", "code")}
    folder.evaluation("of-student", STUDENT, model=found["student"])
    folder.evaluation("of-math", MATH, model=found["math"])
    folder.evaluation("of-code", CODE, model=found["code"])
    return found


@pytest.fixture
def distill(folder, models):
    """distill(name, asked, teachers, **sections) writes a run of these teachers."""

    def distill(name: str, asked, teachers: str = "math", student: str = "student", **sections):
        named = {each: {"model": models[each]} for each in teachers.split()}
        algorithm = sections.pop("algorithm", {})
        return folder.run(
            name, asked, student={"model": models[student]}, teachers=named, algorithm=algorithm, **sections
        )

    return distill


def test_a_study_in_which_exopd_is_better(study_folder):
    found = verdicts(study_folder)
    assert about(found, "recovers the accuracy") == HOLDS
    assert about(found, "nearest above 1", "more accurate than OPD") == HOLDS
    assert about(found, "one ExOPD student surpasses all") == HOLDS
    assert about(found, "In training", "entropy") == OPEN  # one of the ExOPD runs is unfinished
    assert about(found, "From a larger teacher, ExOPD") == OPEN


def test_an_unfinished_run_speaks_for_nothing(study_folder):
    claims = findings(Study([study_folder]))
    exopd = [each.value for each in next(f for f in claims if "nearest above 1" in f.claim.text).evidence]
    assert [value.seeds for value in exopd] == [2, 2]


def test_where_exopd_is_worse_the_claim_does_not_hold(distill, folder):
    distill("one", {"math_test": 0.7})
    distill("two", {"math_test": 0.6}, algorithm={"lambda": 1.25})
    found = verdicts(folder.root)
    assert about(found, "nearest above 1", "more accurate than OPD") == FAILS
    assert about(found, "ExOPD is more accurate than the teacher") == FAILS


def test_runs_of_different_recipes_are_not_compared(distill, folder):
    distill("one", {"math_test": 0.7})
    distill("two", {"math_test": 0.8}, algorithm={"lambda": 1.25}, optimizer={"lr": 1e-3})
    assert about(verdicts(folder.root), "nearest above 1", "more accurate than OPD") == OPEN


def test_interpolation_rises(distill, folder):
    for lambda_, chance in ((0.25, 0.48), (0.5, 0.56), (0.75, 0.63)):
        distill(f"at-{lambda_}", {"math_test": chance}, algorithm={"lambda": lambda_})
    found = verdicts(folder.root)
    assert about(found, "Between λ = 0 and 1, accuracy") == HOLDS
    distill("again", {"math_test": 0.50}, algorithm={"lambda": 0.9})
    assert about(verdicts(folder.root), "Between λ = 0 and 1, accuracy") == FAILS


def test_nobody_is_the_only_one_who_was_not_measured_beside_others(distill, folder):
    distill("sft", {"math_test": 0.6, "code_test": 0.6}, "math code", algorithm={"type": "sft"})
    assert about(verdicts(folder.root), "the only method") == OPEN  # no ExOPD
    distill("exopd", {"math_test": 0.8, "code_test": 0.8}, "math code", algorithm={"lambda": 1.25})
    assert about(verdicts(folder.root), "the only method") == HOLDS
    shutil.rmtree(folder.root / "runs" / "sft")
    assert about(verdicts(folder.root), "the only method") == OPEN  # no rival


def test_a_baseline_that_surpasses_every_teacher_too(distill, folder, models):
    better = {"math_test": 0.8, "code_test": 0.8}
    distill("exopd", better, "math code", algorithm={"lambda": 1.25})
    distill("sft", {"math_test": 0.6, "code_test": 0.6}, "math code", algorithm={"type": "sft"})
    assert about(verdicts(folder.root), "the only method") == HOLDS
    merged = Path(folder.model("merged"))
    teachers = [models["math"], models["code"]]
    (merged / "merge.json").write_text(json.dumps({"teachers": teachers, "base": models["student"], "alpha": 0.5}))
    folder.evaluation("of-merged", better, model=str(merged))
    found = verdicts(folder.root)
    assert (about(found, "ExPO with several"), about(found, "the only method")) == (FAILS, FAILS)
    assert about(found, "ExOPD is more accurate than SFT") == HOLDS


def test_from_a_larger_teacher_with_and_without_reward_correction(distill, folder, models):
    models["large"], models["large-base"] = (folder.model(name, LARGE) for name in ("large", "large-base"))
    folder.evaluation("of-large", {"math_test": 0.9}, model=models["large"])
    distill("opd", {"math_test": 0.5}, "large")
    distill("exopd", {"math_test": 0.6}, "large", algorithm={"lambda": 1.25})
    distill("corrected", {"math_test": 0.7}, "large", algorithm={"lambda": 1.25, "reference": models["large-base"]})
    found = verdicts(folder.root)
    assert about(found, "From a larger teacher, ExOPD") == HOLDS
    assert about(found, "reward correction") == HOLDS
    assert about(found, "ExOPD (λ") == OPEN  # which is about teachers of the student's size


def test_a_teacher_that_was_trained_further(distill, folder, models):
    distill("exopd", {"math_test": 0.8}, algorithm={"lambda": 1.25})
    more = {"student": {"model": models["math"]}, "algorithm": {"type": "grpo"}, "rewards": "math"}
    folder.run("more", {"math_test": 0.72}, **more)
    assert about(verdicts(folder.root), "trained further") == HOLDS


def far_from_target(run: Path, nats: float) -> None:
    answered = run / "evaluation" / "after" / "math_test.jsonl"
    ids = {json.loads(line)["id"] for line in answered.read_text().splitlines()}
    beside = {id: nats * (1 + int(id) % 3 / 10) for id in ids}
    (answered.parent / "math_test.target_kl.json").write_text(json.dumps(beside))


@pytest.mark.parametrize(("better", "nearer"), [(HOLDS, FAILS), (FAILS, HOLDS)])
def test_the_exact_gradient_beside_the_sampled_one(distill, folder, better, nearer):
    exact = distill("one", {"math_test": 0.7}, algorithm={"gradient": "exact"})
    sampled = distill("two", {"math_test": 0.6 if better == HOLDS else 0.8})
    distill("other-lambda", {"math_test": 0.1}, algorithm={"lambda": 1.25})
    found = verdicts(folder.root)
    assert about(found, "exact gradient is more accurate") == better
    assert about(found, "exact gradient comes nearer") == OPEN
    for run, nats in zip((exact, sampled), (0.1, 0.2) if nearer == HOLDS else (0.2, 0.1), strict=True):
        far_from_target(run, nats)
    assert about(verdicts(folder.root), "exact gradient comes nearer") == nearer


def test_a_baseline_of_ones_own_is_compared_at_equal_steps(distill, folder, models):
    def baseline(name: str, chance: float, steps: int) -> None:
        model = Path(folder.model(name))
        about = {"name": "mine", "student": models["student"], "teachers": [models["math"]], "steps": steps, "seed": 1}
        (model / "baseline.json").write_text(json.dumps(about))
        folder.evaluation(f"of-{name}", {"math_test": chance}, model=str(model))

    distill("opd", {"math_test": 0.7})
    baseline("longer", 0.9, steps=20)
    assert about(verdicts(folder.root), "baseline of one's own") == OPEN
    baseline("as-long", 0.5, steps=10)
    assert about(verdicts(folder.root), "baseline of one's own") == HOLDS


def evidence(mean: float, error: float, margin: float = 0.0) -> Evidence:
    return Evidence("", "", Measured(mean, error, float("nan"), 100, {1: mean}), margin=margin)


def test_one_low_figure_among_many_must_be_lower_to_count():
    assert above_zero([evidence(-2.1, 1.0)]) == FAILS
    assert above_zero([evidence(-2.1, 1.0), *[evidence(5.0, 1.0)] * 9]) == OPEN
    assert above_zero([evidence(-3.5, 1.0), *[evidence(5.0, 1.0)] * 9]) == FAILS


def test_near_is_on_both_sides():
    assert near_zero([evidence(0.5, 0.2, margin=1.0)]) == HOLDS
    assert near_zero([evidence(1.5, 0.2, margin=1.0)]) == FAILS
    assert near_zero([evidence(0.9, 0.2, margin=1.0)]) == OPEN


def test_one_figure_below_is_enough_for_somewhere():
    assert somewhere_below([evidence(-1.0, 0.1), evidence(1.0, 0.1)]) == HOLDS
    assert somewhere_below([evidence(1.0, 0.1), evidence(1.0, 0.1)]) == FAILS
    assert somewhere_below([evidence(0.1, 0.1), evidence(1.0, 0.1)]) == OPEN


def test_the_standard_error_of_a_single_problem_decides_nothing():
    assert above_zero([evidence(1.0, float("nan"))]) == OPEN
