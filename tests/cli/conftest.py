"""A run on disk that a test may spoil, and the command line to start it with."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from tests.chat_models import write_questions


@pytest.fixture
def run(chat_models, tmp_path) -> SimpleNamespace:
    """Copies of a student and a teacher, their data, and run.yaml; `write()` writes `tree` anew."""
    student, teacher = (shutil.copytree(chat_models[name], tmp_path / name) for name in ("student", "teacher"))
    train = write_questions(tmp_path / "train.jsonl", 8)
    fp32 = {"dtype": "float32"}
    tree = {
        "run": {"name": "tiny", "steps": 2, "folder": str(tmp_path / "runs")},
        "student": {"model": str(student)} | fp32,
        "teachers": {"teacher": {"model": str(teacher)} | fp32},
        "data": {"train": str(train), "batch_size": 4},
        "rollout": {"max_response_tokens": 4},
    }
    config = tmp_path / "run.yaml"
    run = SimpleNamespace(tree=tree, config=config, student=student, teacher=teacher, train=train, root=tmp_path)
    run.folder = tmp_path / "runs" / "tiny"
    run.write = lambda: config.write_text(yaml.safe_dump(tree, sort_keys=False))
    run.write()
    return run


@pytest.fixture
def call():
    """call(verb, *arguments): the command line within this process -> exit_code, stdout, stderr."""

    def call(*arguments: str | Path):
        from megatron_gopd.cli import app

        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call
