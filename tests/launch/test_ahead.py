"""What submit refuses of a run's inputs, where they are seen from the machine that submits."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_gopd.config import load_config
from megatron_gopd.errors import UserError
from megatron_gopd.launch import ahead
from megatron_gopd.launch.ahead import check_inputs
from tests.chat_models import write_questions
from tests.cli.run_verb import write_config


@pytest.fixture
def config(chat_models, tmp_path):
    """config(*overrides) -> of two teachers and four prompts"""
    data = write_questions(tmp_path / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])
    path = write_config(tmp_path, chat_models, data)
    return lambda *overrides: load_config(path, list(overrides))


def test_a_run_whose_inputs_are_fit_is_let_pass(config, capsys):
    assert check_inputs([config()], 2) == []
    assert capsys.readouterr().err == "looking at models, tokenizers, prompts and rewards ...\n"


def test_what_doctor_refuses_is_refused(config):
    with pytest.raises(UserError, match=r"data.batch_size \(9\) is larger than the number of prompts \(4\)"):
        check_inputs([config("data.batch_size=9")], 1)


def test_every_point_of_a_sweep_is_looked_at_once(config, capsys):
    points = [config(f"data.batch_size={size}", f"run.name=point-{size}", "optimizer.lr=1e-4") for size in (1, 9)]
    with pytest.raises(UserError, match=r"data.batch_size \(9\)"):
        check_inputs(points, 1)
    alike = [config(f"optimizer.lr={lr}", f"run.name=point-{lr}") for lr in ("1e-4", "1e-5")]
    capsys.readouterr()
    assert check_inputs(alike, 1) == []
    assert capsys.readouterr().err.count("looking at models") == 1


def test_what_is_not_seen_from_here_is_a_warning(config):
    [told] = check_inputs([config("student.model=Qwen/Qwen3-1.7B", "data.train=/nodes/only/*.parquet")], 1)
    assert told.startswith(
        "not seen from here, and looked at when the job starts: student Qwen/Qwen3-1.7B; if it names"
    )
    assert "hf download Qwen/Qwen3-1.7B" in told
    assert told.endswith("; data.train /nodes/only/*.parquet")


def test_a_machine_without_torch_says_so(config, monkeypatch):
    monkeypatch.setattr(ahead, "find_spec", lambda name: None)
    assert check_inputs([config("data.batch_size=9")], 1) == [
        "models and data are looked at when the job starts: there is no torch here"
    ]


def test_the_folder_of_another_run_is_refused_and_a_finished_run_is_not(config):
    folder = Path(config().run.folder, "tiny")
    (folder / "model").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    with pytest.raises(UserError, match="it is not a run's folder"):
        check_inputs([config()], 1)
    from megatron_gopd.config import to_yaml

    (folder / "config.yaml").write_text(to_yaml(config()))
    assert check_inputs([config()], 1) == []
    with pytest.raises(UserError, match="is of another configuration"):
        check_inputs([config("optimizer.lr=1e-3")], 1)
