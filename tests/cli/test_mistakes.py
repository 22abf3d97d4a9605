"""Each mistake a user can make: exit code 2, one message that says where, no traceback, nothing half-written."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from tests.chat_models import save_chat_model, tokenizer, write_questions
from tests.cli.run_verb import run_verb, write_config


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])


@pytest.fixture
def broken(chat_models, tmp_path):
    """A copy of the teacher, to be damaged."""
    return shutil.copytree(chat_models["teacher"], tmp_path / "broken")


@pytest.fixture
def refusal(chat_models, tmp_path, questions, capfd):
    """refusal(**sections) -> the message of a train that must fail."""

    def run(*overrides: str, **sections) -> str:
        from megatron_gopd.cli import app

        config = write_config(tmp_path, chat_models, questions, **sections)
        result = CliRunner().invoke(app, ["train", str(config), *overrides])
        message = capfd.readouterr().err + result.stderr
        assert result.exit_code == 2, message
        assert message.count("error:") == 1
        assert "Traceback" not in message
        assert len(message.splitlines()) <= 25
        assert not (tmp_path / "runs" / "tiny").exists()
        return message

    return run


def teacher(model) -> dict:
    return {"teachers": {"math": {"model": str(model), "dtype": "float32"}, "code": {"model": str(model)}}}


def test_a_missing_configuration():
    done = run_verb("train", "no-such.yaml")
    assert done.returncode == 2
    assert done.stderr == "error: cannot read the configuration no-such.yaml: No such file or directory\n"


def test_a_misspelt_key(refusal):
    assert "did you mean 'temperature'?" in refusal("rollout.temprature=1")


def test_a_missing_model(refusal, tmp_path):
    said = refusal(f"student.model={tmp_path}/none")
    assert f"error: student: {tmp_path}/none is no Hugging Face model directory" in said


def test_a_missing_weights_file(refusal, broken):
    (broken / "model.safetensors").unlink()
    assert f"{broken}: holds neither model.safetensors nor" in refusal(**teacher(broken))


def test_a_truncated_weights_file(refusal, broken):
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"{weights}: damaged or truncated safetensors file" in refusal(**teacher(broken))


def test_an_unknown_architecture(refusal, broken):
    config = json.loads((broken / "config.json").read_text()) | {"model_type": "mamba"}
    (broken / "config.json").write_text(json.dumps(config))
    assert "model_type 'mamba' is not supported; supported: llama, qwen2, qwen3" in refusal(**teacher(broken))


def test_nan_weights(refusal, broken):
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight holds 1 NaN or infinite value" in refusal(**teacher(broken))


def test_another_vocabulary(refusal, tmp_path):
    other = save_chat_model(tmp_path / "vocabulary", letters=280)
    message = refusal(**teacher(other))
    assert "have different tokenizers" in message
    assert f"id {len(tokenizer(280))}: {tokenizer().convert_ids_to_tokens(len(tokenizer(280)))!r} / None" in message


def test_a_tag_without_a_teacher(refusal, questions):
    rows = questions.read_text().splitlines()
    rows[2] = json.dumps({"prompt": "Hi", "opd_teacher": "physics"})
    questions.write_text("\n".join(rows) + "\n")
    message = refusal()
    assert f"{questions}:3: opd_teacher 'physics' is no teacher; the teachers are math, code" in message


@pytest.mark.parametrize(("row", "problem"), [("{", "not JSON"), ("", "an empty line"), ("{}", "an empty row")])
def test_a_row_that_is_none(refusal, questions, row, problem):
    rows = questions.read_text().splitlines()
    questions.write_text("\n".join([rows[0], row, rows[1]]) + "\n")
    assert f"{questions}:2: {problem}" in refusal()


def test_ranks_that_a_layout_does_not_divide(refusal):
    message = refusal("student.layout.tp=2")
    assert "tp 2 x pp 1 x cp 1 = 2 rank(s) a replica, which does not divide the 1 rank(s)" in message


def test_a_tp_that_does_not_divide_the_heads(refusal):
    assert "4 attention heads cannot be cut over tp = 3 (4 % 3 = 1)" in refusal("student.layout.tp=3")


def test_fp8_without_transformer_engine(refusal):
    message = refusal("student.fp8.recipe=delayed", "student.dtype=bfloat16")
    assert "fp8 needs a GPU and Transformer Engine" in message
    assert "on a machine with a GPU make install brings it" in message


def test_the_folder_of_another_run(chat_models, tmp_path, questions, capfd):
    from megatron_gopd.cli import app

    config = write_config(tmp_path, chat_models, questions)
    assert CliRunner().invoke(app, ["train", str(config)]).exit_code == 0
    before = sorted(path.name for path in (tmp_path / "runs" / "tiny").rglob("*"))
    capfd.readouterr()
    result = CliRunner().invoke(app, ["train", str(config), "optimizer.lr=1e-3"])
    assert result.exit_code == 2
    assert "optimizer.lr: there 1e-05, here 0.001" in capfd.readouterr().err + result.stderr
    assert sorted(path.name for path in (tmp_path / "runs" / "tiny").rglob("*")) == before
