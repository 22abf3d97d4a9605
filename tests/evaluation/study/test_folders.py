"""What is a run, what is an evaluation, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.study.folders import read_folders

ASKED = {"math_test": 0.5}


@pytest.fixture
def run(folder) -> Path:
    models = {"student": {"model": folder.model("student")}, "teachers": {"t": {"model": folder.model("teacher")}}}
    return folder.run("first", ASKED, before=ASKED, **models)


def test_runs_and_evaluations_are_found_at_any_depth_and_once(folder, run):
    folder.evaluation("deep/er/eval", ASKED, model="m")
    runs, evaluations = read_folders([folder.root, run])
    assert ([each.path for each in runs], len(evaluations)) == ([run], 1)


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_folder_that_is_no_run_says_what_one_is(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run and holds none: .* config.yaml|is not a folder; name runs"):
        read_folders([tmp_path / name])


def test_an_interrupted_run_is_unfinished_and_has_no_final_evaluation(folder):
    models = {"student": {"model": folder.model("student")}, "teachers": {"t": {"model": folder.model("teacher")}}}
    path = folder.run("going", ASKED, done=4, **models)
    with (path / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 5, "los')  # killed while it wrote
    (run,), _ = read_folders([path])
    assert (run.done, run.finished, run.final) == (4, False, None)


def test_an_evaluation_of_fewer_steps_is_not_that_of_a_prolonged_run(folder, run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("steps: 10", "steps: 20"))
    (found,), _ = read_folders([run])
    assert (found.finished, found.final) == (False, None)


def test_an_evaluation_without_a_summary_has_no_suites(folder):
    path = folder.evaluation("eval", ASKED, model="m")
    (path / "summary.json").unlink()
    _, (found,) = read_folders([path])
    assert found.suites == {}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evaluation/after/summary.json", '{"step": 10,', "summary.json is not JSON"),
        ("evaluation/after/summary.json", '{"step": 10}', "summary.json lists no suites"),
        ("evaluation/after/math_test.jsonl", "{}\n", "math_test.jsonl:1: not an answer of an evaluation"),
        (
            "evaluation/after/math_test.target_kl.json",
            '{"0": "near"}',
            "target_kl.json is not a figure for each problem",
        ),
        ("config.yaml", "run: {name: x}\n", "'run.steps' is missing"),
        ("config.yaml", "run: {name: x, later: 1}\n", "unknown key 'run.later'(.|\n)*another version, leave it out"),
    ],
)
def test_a_damaged_file_is_named(run, file, text, message):
    (run / file).write_text(text)
    with pytest.raises(UserError, match=message):
        read_folders([run])


def test_settings_of_something_else_are_refused(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(UserError, match="names neither a model nor a target"):
        read_folders([tmp_path])


@pytest.mark.parametrize("law", [{"teacher": "a", "reference": "b"}, "a"])
def test_a_target_that_is_no_law_is_refused(tmp_path, law):
    (tmp_path / "settings.json").write_text(json.dumps({"target": law}))
    with pytest.raises(UserError, match="settings.json: a target has a teacher, a reference and a lambda"):
        read_folders([tmp_path])


def test_a_relative_model_starts_where_the_run_was_started(folder, monkeypatch):
    for name in ("student", "teacher"):
        folder.model(name)
    models = {"student": {"model": "student"}, "teachers": {"t": {"model": "teacher"}}}
    monkeypatch.chdir(folder.root)
    path = folder.run("first", ASKED, **models)
    config = path / "config.yaml"
    config.write_text(config.read_text().replace(f"folder: {folder.root}/runs", "folder: runs"))
    monkeypatch.chdir("/")
    (run,), _ = read_folders([path])
    assert run.student == folder.root / "student"
