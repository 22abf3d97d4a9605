"""Heads that the exact gradient cannot read are refused before a model is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError


@pytest.fixture
def teacher(chat_models, tmp_path) -> Path:
    return Path(shutil.copytree(chat_models["student"], tmp_path / "teacher"))


@pytest.fixture
def refusal(chat_models, teacher, monkeypatch):
    def of() -> str:
        from megatron_gopd.policies import hidden_scorers, scorers

        monkeypatch.setattr(scorers, "frozen_model", lambda *_, **__: pytest.fail("a model was loaded"))
        tree = {
            "run": {"name": "r", "steps": 1},
            "student": {"model": str(chat_models["student"])},
            "teachers": {"t": {"model": str(teacher)}},
            "algorithm": {"gradient": "exact"},
            "data": {"train": "x.jsonl", "batch_size": 1},
        }
        with pytest.raises(UserError) as caught:
            hidden_scorers.HiddenScorers(Config.model_validate(tree))
        return str(caught.value)

    return of


def test_a_head_with_fewer_rows_than_the_tokenizer_has_ids(teacher, refusal):
    about = json.loads((teacher / "config.json").read_text()) | {"vocab_size": 10}
    (teacher / "config.json").write_text(json.dumps(about))
    assert f"teachers.t ({teacher}) has 10 rows of vocabulary, but the tokenizer" in refusal()


def test_a_megatron_checkpoint(teacher, refusal):
    (teacher / "state").mkdir()
    assert f"teachers.t ({teacher}) is a Megatron checkpoint, from which no single tensor is read" in refusal()
