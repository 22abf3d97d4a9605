"""A model folder that one verb refuses is refused by every verb that reads the same of it, with the same sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from megatron_gopd.errors import UserError
from tests.chat_models import tokenizer, write_questions
from tests.cli.run_verb import write_config

MATRIX = "model.layers.0.mlp.up_proj.weight"


def configured(**changes):
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def rewritten(change):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def tied(folder: Path) -> None:
    configured(tie_word_embeddings=True)(folder)


def two_readings(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "other.safetensors"}}')


def longer_tokenizer(folder: Path) -> None:
    longer = tokenizer(310)
    longer.add_tokens([f"<{number}>" for number in range(20)])
    longer.save_pretrained(folder)
    tokenizer.cache_clear()


def unknown_end(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 100000}')


OF_CONFIG = {
    "a key that changes what is computed": configured(final_logit_softcapping=30.0),
    "quantized weights": configured(quantization_config={"quant_method": "fp8"}),
    "sliding windows": configured(use_sliding_window=True),
    "rope that is not computed": configured(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}),
}
OF_WEIGHTS = {
    "integers": rewritten(lambda tensors: tensors.update({MATRIX: tensors[MATRIX].to(torch.int8)})),
    "8-bit floats": rewritten(lambda tensors: tensors.update({MATRIX: tensors[MATRIX].to(torch.float8_e4m3fn)})),
    "a head that is not the embedding it is tied to": tied,
    "key-value heads of another model": configured(num_key_value_heads=4),
    "key-value heads of the class": configured(num_key_value_heads=None),
    "a tensor too many": rewritten(lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)})),
    "an index and another file": two_readings,
}
OF_TOKENIZER = {"more ids than the embedding has rows": longer_tokenizer}
OF_STOPS = {"a stop id outside the vocabulary": unknown_end}

READ_CONFIG = ("dry-run", "plan")
READ_WEIGHTS = ("train", "score", "evaluate", "convert", "merge", "serve-scorer", "doctor")
READ_TOKENIZER = ("train", "evaluate", "merge", "serve-scorer", "doctor")
OF_RUNS = ("dry-run", "plan", "train", "doctor")
READ_STOPS = ("train", "evaluate", "doctor")


@pytest.fixture
def commands(chat_models, tmp_path):
    """{verb: its arguments} for TMP/broken, as a student where there is one."""
    broken = str(tmp_path / "broken")
    questions = write_questions(tmp_path / "train.jsonl", 4, opd_teacher="math")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt_tokens": [5], "response_tokens": [6]}\n')
    models = chat_models | {"student": Path(broken)}
    config = str(write_config(tmp_path, models, questions))
    return {
        "dry-run": ["train", config, "--dry-run"],
        "plan": ["plan", config, "--gpus", "1"],
        "train": ["train", config],
        "doctor": ["doctor", config],
        "score": ["score", "--model", broken, "--input", str(rows), "--output", str(tmp_path / "out.jsonl")],
        "evaluate": ["evaluate", "--model", broken, "--data", str(questions)],
        "convert": ["convert", "hf-to-megatron", broken, str(tmp_path / "converted")],
        "merge": [
            "merge",
            broken,
            str(shutil.copytree(broken, tmp_path / "like")),
            "--output",
            str(tmp_path / "merged"),
        ],
        "serve-scorer": ["serve-scorer", "--model", broken, "--port", "0"],
    }


@pytest.fixture
def broken(chat_models, tmp_path, request):
    folder = shutil.copytree(chat_models["student"], tmp_path / "broken")
    request.param(folder)
    return folder


def sentence(read, *args) -> str:
    with pytest.raises(UserError) as caught:
        read(*args)
    return str(caught.value)


def assert_all_say(expected: str, verbs, commands, capfd) -> None:
    from megatron_gopd.cli import app

    silent = {}
    for verb in verbs:
        capfd.readouterr()
        result = CliRunner().invoke(app, commands[verb])
        captured = capfd.readouterr()
        said = captured.out + captured.err + result.output + result.stderr
        if result.exit_code != 2 or expected not in said or "Traceback" in said:
            silent[verb] = (result.exit_code, result.exception, said[-600:])
    assert not silent


def cases(kinds: dict):
    return pytest.mark.parametrize("broken", kinds.values(), ids=kinds.keys(), indirect=True)


@cases(OF_CONFIG)
def test_every_verb_refuses_a_config(broken, commands, capfd):
    from megatron_gopd.mcore.architecture import Architecture

    assert_all_say(sentence(Architecture.read, broken), READ_CONFIG + READ_WEIGHTS, commands, capfd)


@pytest.mark.parametrize("broken", [configured(max_position_embeddings=6)], indirect=True)
def test_every_verb_of_a_run_refuses_a_context_that_is_too_short(broken, commands, capfd):
    said = f"max_position_embeddings of the student ({broken}) is 6; lower one of the two"
    assert_all_say(said, OF_RUNS, commands, capfd)


@cases(OF_WEIGHTS)
def test_every_verb_that_reads_weights_refuses_them(broken, commands, capfd):
    from megatron_gopd.mcore.front_door import open_weights

    assert_all_say(sentence(open_weights, broken), READ_WEIGHTS, commands, capfd)


@cases(OF_TOKENIZER)
def test_every_verb_that_reads_a_tokenizer_refuses_it(broken, commands, capfd):
    from megatron_gopd.data import load_tokenizer

    assert_all_say(sentence(load_tokenizer, broken), READ_TOKENIZER, commands, capfd)


@cases(OF_STOPS)
def test_every_verb_that_ends_responses_refuses_an_end_that_is_none(broken, commands, capfd):
    from megatron_gopd.data import load_tokenizer, stop_ids

    assert_all_say(sentence(stop_ids, broken, load_tokenizer(broken)), READ_STOPS, commands, capfd)
