"""Benchmarks and held-out prompts before, during and after a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from megatron_gopd.config import Config, load_config
from megatron_gopd.errors import UserError
from tests.chat_models import write_questions
from tests.training.runs_on_ranks import interrupted


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = [{"question": f"What is {number} plus 1?", "answer": str(number + 1)} for number in range(3)]
    (folder / "aime25.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(make_config, distill, benchmarks, tmp_path_factory):
    held_out = write_questions(tmp_path_factory.mktemp("held") / "out.jsonl", 2, opd_teacher="strong")
    asked = {"every": 2, "prompts": str(held_out), "limit": 2, "max_response_tokens": 4, "suites": ["aime25"]}
    asked |= {"benchmarks": str(benchmarks), "suite_samples": 2, "suite_max_response_tokens": 4, "teachers": True}
    config: Config = make_config("exams", evaluation=asked, checkpoint={"every": 1})
    config.run.steps = 3
    distill(config)
    return Path(config.run.folder, config.run.name)


def metrics_of_exams(run: Path) -> dict[int, dict[str, float]]:
    """{step: its metrics eval/...}"""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: {name: row[name] for name in row if name.startswith("eval/")} for row in rows}
    assert len(found) == len(rows)
    return found


def test_before_every_second_step_and_after_have_their_evaluation(run):
    found = metrics_of_exams(run)
    assert [bool(found[step]) for step in (0, 1, 2, 3)] == [True, False, True, True]
    for step in (0, 2, 3):
        assert {"eval/aime25", "eval/aime25/standard_error", "eval/reverse_kl_fixed"} <= found[step].keys()
        assert all(math.isfinite(value) for value in found[step].values())


def test_answers_and_summaries_lie_in_the_runs_folder(run):
    for when, step in {"before": 0, "step-2": 2, "after": 3}.items():
        summary = json.loads((run / "evaluation" / when / "summary.json").read_text())
        assert (summary["step"], summary["suites"][0]["accuracy"]["items"]) == (step, 3)
        assert len((run / "evaluation" / when / "aime25.jsonl").read_text().splitlines()) == 6
        assert (run / "evaluation" / f"{when}.json").exists()


def test_teachers_answer_too(run):
    for teacher in ("short", "strong"):
        assert len((run / "evaluation" / "teachers" / teacher / "aime25.jsonl").read_text().splitlines()) == 6


def test_a_report_on_the_run_has_its_figures(run, tmp_path):
    from megatron_gopd.evaluation.study import report

    report([run], tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    (after,) = json.loads((run / "evaluation" / "after" / "summary.json").read_text())["suites"]
    cells = [f"{100 * after['accuracy'][name]:.1f}" for name in ("mean", "standard_error")]
    assert f"| exams, after step 3 of 3 | aime25 | 3 | 2 | {' ± '.join(cells)} |" in text
    assert "training-1.png" in text


def test_a_continued_run_keeps_what_its_student_answered_before(run, distill, tmp_path):
    tree = load_config(run / "config.yaml").model_dump(mode="json", by_alias=True)
    distill(Config.model_validate(interrupted(tree, after=2, folder=tmp_path)))

    def written(folder: Path, when: str) -> int:
        return (folder / "evaluation" / when / "aime25.jsonl").stat().st_mtime_ns

    assert written(tmp_path / "exams", "before") == written(run, "before")
    assert written(tmp_path / "exams", "after") > written(run, "after")
    assert metrics_of_exams(tmp_path / "exams") == metrics_of_exams(run)  # that before the first step once


@pytest.mark.parametrize(
    ("suites", "message"),
    [(["aime25", "hmmt25-nov"], "hmmt25-nov: no file "), (["amie"], "no suite 'amie'; choose aime24")],
)
def test_a_suite_that_cannot_be_asked_is_refused_early(make_config, one_rank, benchmarks, suites, message):
    from megatron_gopd.data import load_tokenizers
    from megatron_gopd.training.exams import check_suites

    config = make_config("refused", evaluation={"suites": suites, "benchmarks": str(benchmarks)})
    with pytest.raises(UserError, match=message):
        check_suites(config, load_tokenizers(config))
