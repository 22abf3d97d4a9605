"""The verbs within this process: a chain of them, and what each refuses before it does any work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tests.chat_models import write_questions
from tests.cli.run_verb import write_config


@pytest.fixture
def run(chat_models, tmp_path) -> SimpleNamespace:
    """A run of two teachers: its configuration, data, student and folder."""
    data = write_questions(tmp_path / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])
    config = write_config(tmp_path, chat_models, data)
    return SimpleNamespace(config=config, data=data, model=chat_models["student"], folder=tmp_path / "runs" / "tiny")


@pytest.fixture
def call():
    """call(verb, *arguments) -> what the command line answers"""

    def call(*arguments: str | Path):
        from megatron_gopd.cli import app

        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "prompt": "What is", "response": " 1"}\n')
    return path


def test_a_trained_model_can_be_scored_and_evaluated(call, run, rows, tmp_path):
    trained = call("train", run.config, "run.steps=1")
    assert trained.exit_code == 0, trained.output
    model = run.folder / "model"
    scored = call("score", "--model", model, "--input", rows, "--output", tmp_path / "out.jsonl")
    assert scored.exit_code == 0, scored.output
    assert json.loads((tmp_path / "out.jsonl").read_text()).keys() == {"id", "logprobs", "entropy"}
    options = ["--grader", "exact", "--samples", "2", "--limit", "3", "--max-response-tokens", "4"]
    evaluated = call("evaluate", "--model", model, "--data", run.data, *options)
    assert evaluated.exit_code == 0, evaluated.output
    assert evaluated.stdout.startswith("avg@2 0.")
    assert " over 3 problems; " in evaluated.stdout


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=9", "data.batch_size (9) is larger than the number of prompts (4); set it to 4 or less"),
        (
            "evaluation={prompts: none.jsonl}",
            "none.jsonl: no such file of prompts; a relative path counts from the working folder",
        ),
        ("data.max_prompt_tokens=2", "data.train: all 4 prompts are longer than data.max_prompt_tokens (2)"),
    ],
)
def test_a_mistake_that_shows_once_data_are_read_leaves_no_run_behind(call, run, override, message):
    answer = call("train", run.config, override)
    assert (answer.exit_code, answer.stderr[: len(message) + 7]) == (2, f"error: {message}")
    assert not run.folder.exists()


def test_a_row_without_a_tag_is_named_where_there_are_two_teachers(call, run):
    write_questions(run.data, 4)
    answer = call("train", run.config)
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {run.data}:1: no opd_teacher here, and data_source is None")


def test_a_folder_that_is_no_run_is_left_as_it_is(call, run):
    run.folder.mkdir(parents=True)
    (run.folder / "thesis.tex").touch()
    answer = call("train", run.config)
    assert answer.exit_code == 2
    assert f"{run.folder} holds 'thesis.tex' but no config.yaml: it is not a run's folder" in answer.stderr
    assert [path.name for path in run.folder.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("verb", "options", "message"),
    [
        ("score", {"--layout": "tpp=2"}, "--layout: cannot read 'tpp=2'; write key=value with the keys tp, pp, "),
        ("score", {"--dtype": "float16"}, "--dtype float16: choose float32 or bfloat16"),
        ("score", {"--input": "none.jsonl"}, "cannot read none.jsonl: No such file or directory"),
        ("score", {"--model": "none"}, "none"),
        (
            "evaluate",
            {"--grader": "kindness"},
            "--grader kindness: choose math, math_lenient, exact, code, auto or FILE.py:FUNCTION",
        ),
        ("evaluate", {"--model": "none"}, "none is no Hugging Face model directory: there is no such folder"),
        (
            "evaluate",
            {"--data": "none.jsonl"},
            "none.jsonl: no such file of prompts; a relative path counts from the working folder",
        ),
    ],
)
def test_a_mistake_in_an_option_is_named(call, run, rows, tmp_path, verb, options, message):
    right = {"score": {"--input": rows, "--output": tmp_path / "out.jsonl"}, "evaluate": {"--data": run.data}}[verb]
    arguments = {"--model": run.model} | right | options
    answer = call(verb, *(part for pair in arguments.items() for part in pair))
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert "Traceback" not in answer.output
    assert not (tmp_path / "out.jsonl").exists()


def test_a_plan_is_made_without_a_gpu_also_where_there_is_one(call, run, monkeypatch):
    """Its models are tensors without values."""
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(
        "megatron_gopd.plan.verb.run_plan", lambda *_, **__: seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    )
    assert call("plan", run.config).exit_code == 0
    assert seen == [""]


@pytest.mark.parametrize(("device", "left"), [("cpu", ""), ("auto", "0,1")])
def test_a_run_on_cpus_sees_no_gpu(call, run, monkeypatch, device, left):
    """Hidden before torch is asked, from the run and from servers that it starts."""
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("megatron_gopd.training.train.train", lambda _: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    assert call("train", run.config, f"run.device={device}").exit_code == 0
    assert seen == [left]


def test_a_clash_of_names_is_told_before_models_are_looked_at(run, call, capfd):
    from megatron_gopd.config import load_config
    from megatron_gopd.runs import RunFolder

    with RunFolder.open(load_config(run.config)) as folder:
        folder.metrics.write_text('{"step": 1}\n')
    done = call("train", run.config, "student.model=/no/model")
    told = capfd.readouterr().err + done.stderr
    assert done.exit_code == 2
    assert 'student.model: there "' in told
    assert "--new-name runs this beside it, --overwrite in its place" in told


def test_a_run_with_a_new_name_that_cannot_be_leaves_nothing(run, call, capfd):
    run.folder.mkdir(parents=True)
    done = call("train", run.config, "student.model=/no/model", "--new-name")
    assert (done.exit_code, "/no/model is no Hugging Face" in capfd.readouterr().err + done.stderr) == (2, True)
    assert [path.name for path in run.folder.parent.iterdir()] == ["tiny"]


def test_overwrite_leaves_what_is_there_until_the_new_run_can_begin(run, call, capfd):
    from megatron_gopd.config import load_config
    from megatron_gopd.runs import RunFolder

    with RunFolder.open(load_config(run.config)) as folder:
        folder.metrics.write_text('{"step": 1}\n')
    assert call("train", run.config, "student.model=/no/model", "--overwrite").exit_code == 2
    assert folder.metrics.exists()


def test_a_dry_run_shows_the_new_name(run, call):
    run.folder.mkdir(parents=True)
    assert "name: tiny-2\n" in call("train", run.config, "--new-name", "--dry-run").stdout
    assert [path.name for path in run.folder.parent.iterdir()] == ["tiny"]
