"""What doctor says of a run's models, tokenizers, prompts and rewards; and that it refuses what train refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_gopd.config import load_config
from tests.chat_models import save_chat_model, write_questions
from tests.cli.run_verb import write_config


@pytest.fixture
def config(chat_models, tmp_path) -> Path:
    """Two teachers, four prompts; write_questions has made their labels."""
    data = write_questions(tmp_path / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])
    return write_config(tmp_path, chat_models, data)


@pytest.fixture
def found(config):
    """found(*overrides, here=...) -> {check: finding}"""

    def found(*overrides: str, **on) -> dict:
        from megatron_gopd.launch.inputs import Inputs

        return {one.check: one for one in Inputs(load_config(config, list(overrides)), 1, **on).findings()}

    return found


def test_the_prompts_of_each_teacher_are_counted(found):
    prompts = found("run.steps=4")["prompts"]
    assert prompts.verdict == "ok"
    assert prompts.text.startswith("4 prompts: 2 of math, 2 of code; the longest has ")
    assert prompts.text.endswith(" tokens; 4 steps of 2 read them 2.0 times")


def test_prompts_that_are_too_long_are_counted(found, config):
    data = Path(load_config(config).data.train)
    short = max(len(row) for row in data.read_text().splitlines())
    rows = [{"prompt": "What is it? " * short, "opd_teacher": "math"} for _ in range(3)]
    data.write_text(data.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    text = found("data.max_prompt_tokens=100")["prompts"].text
    assert "4 prompts: 2 of math, 2 of code" in text
    assert "3 longer than data.max_prompt_tokens (100) left out" in text


def test_who_grades_what_is_told(found):
    assert found("rewards=exact")["rewards"].text == "exact grades 4 prompts"


def test_a_teacher_without_prompts_is_a_warning(found, config):
    write_questions(Path(load_config(config).data.train), 4, opd_teacher="math")
    prompts = found()["prompts"]
    assert prompts.verdict == "warning"
    assert prompts.text.endswith("teacher 'code' has no prompts in data.train: it will not be asked")


def test_what_needs_something_unfit_is_left_out(found):
    checks = found("data.train=none.jsonl")
    assert checks["prompts"].verdict == "failed"
    assert {"models", "tokenizers", "evaluation"} <= checks.keys()
    assert not {"rewards", "cautions"} & checks.keys()


def test_elsewhere_nothing_is_asked_of_the_machine(found, tmp_path):
    missing = f"rewards={tmp_path}/none.py:reward"
    assert found(missing)["rewards"].verdict == "failed"
    assert found(missing, here=False)["rewards"].verdict == "ok"


def another_tokenizer(folder: Path) -> str:
    return f"teachers.code.model={save_chat_model(folder / 'other-tokenizer', letters=280)}"


def no_label(folder: Path) -> str:
    write_questions(folder / "train.jsonl", 4, opd_teacher="math")
    rows = [json.loads(row) for row in (folder / "train.jsonl").read_text().splitlines()]
    rows[2]["tests"] = "{"
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rewards=code"


def another_run(folder: Path) -> str:
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "thesis.tex").touch()
    return "run.steps=1"


MISTAKES = {
    "a layout": lambda _: "student.layout.tp=3",
    "a context": lambda _: "rollout.max_response_tokens=100000",
    "fp8": lambda _: "student={fp8: true, dtype: bfloat16}",
    "another tokenizer": another_tokenizer,
    "no such data": lambda _: "data.train=none.jsonl",
    "a name of the hub": lambda _: "student.model=Qwen/Qwen3-1.7B",
    "no prompt short enough": lambda _: "data.max_prompt_tokens=2",
    "a batch": lambda _: "data.batch_size=9",
    "what cannot be graded": no_label,
    "a reward that is not there": lambda folder: f"rewards={folder}/none.py:reward",
    "held-out prompts": lambda _: "evaluation={prompts: none.jsonl}",
    "a benchmark": lambda _: "evaluation={suites: [nonesuch]}",
    "a GPU": lambda _: "run.device=cuda",
    "another's folder": another_run,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_train_refuses_doctor_finds(config, tmp_path, capfd, mistake, monkeypatch):
    from megatron_gopd.cli import app

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    override = MISTAKES[mistake](tmp_path)
    if override.startswith("student={"):
        override = override.replace("{", f"{{model: {load_config(config).student.model}, ")

    def said(verb: str) -> str:
        capfd.readouterr()
        result = CliRunner().invoke(app, [verb, str(config), override])
        assert result.exit_code == 2, result.output
        told = capfd.readouterr()
        return told.out + told.err + result.output + result.stderr

    refused = next(line for line in said("train").splitlines() if line.startswith("error: "))
    assert refused.removeprefix("error: ") in said("doctor")
