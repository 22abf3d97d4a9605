"""Model folders a user may come with by mistake: each is refused with what is wrong, where."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_gopd.config import Layout
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture


@pytest.fixture
def folder(models, tmp_path):
    """A copy to damage."""
    return shutil.copytree(models["qwen3-untied"], tmp_path / "model")


def load(folder):
    from megatron_gopd.mcore import weights
    from megatron_gopd.mcore.model import build_model

    model = build_model(folder, Layout(), "float32")
    weights.load(model, folder)
    return model


@pytest.fixture
def refusal(alone, folder):
    """refusal(): what the user is told of `folder`, called FOLDER."""

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            load(folder)
        return str(caught.value).replace(str(folder), "FOLDER")

    return refusal


def rewrite(folder, change):
    """Let `change` edit the tensors of the folder in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_no_config(folder, refusal):
    (folder / "config.json").unlink()
    assert refusal() == "FOLDER is no Hugging Face model directory: it has no config.json"


def test_no_folder(folder, refusal):
    shutil.rmtree(folder)
    assert refusal() == "FOLDER is no Hugging Face model directory: there is no such folder"


def test_a_name_of_the_hub_is_told_how_to_download_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for named in ("Qwen/Qwen3-1.7B", "https://huggingface.co/Qwen/Qwen3-1.7B", "hf://Qwen/Qwen3-1.7B"):
        with pytest.raises(UserError, match="hf download Qwen/Qwen3-1.7B --local-dir models/Qwen3-1.7B$"):
            Architecture.read(named)


@pytest.mark.parametrize(
    "named", ["none", "./Qwen/Qwen3", "/Qwen/Qwen3", "Qwen/Qwen3/model", "here/Qwen3", "models/Qwen3"]
)
def test_a_path_is_not_taken_for_a_name_of_the_hub(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match="there is no such folder$"):
        Architecture.read(named)


def test_a_config_that_is_no_json(folder, refusal):
    (folder / "config.json").write_text("{")
    assert refusal().startswith("FOLDER/config.json: cannot be read as JSON: Expecting property name")


def test_no_weights(folder, refusal):
    (folder / "model.safetensors").unlink()
    assert refusal() == "FOLDER: holds neither model.safetensors nor model.safetensors.index.json"


@pytest.mark.parametrize("kept", [0, 4, 1000, 100_000])
def test_a_truncated_file(folder, refusal, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert re.fullmatch(r"FOLDER/model.safetensors: damaged or truncated .*; copy it again", refusal())


def test_a_missing_tensor(folder, refusal):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    assert refusal().endswith("(1 differences): model.layers.2.mlp.up_proj.weight is missing")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite(folder, refusal, value):
    rewrite(folder, lambda tensors: tensors["model.norm.weight"][3:5].fill_(value))
    assert refusal().startswith("FOLDER/model.safetensors: model.norm.weight holds 2 NaN or infinite value(s)")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.norm.weight", [65]),
        ("model.embed_tokens.weight", [132, 64]),
        ("model.layers.0.mlp.down_proj.weight", [64, 97]),
        ("model.layers.0.self_attn.q_proj.weight", [64, 64]),
    ],
)
def test_a_tensor_of_another_shape(folder, refusal, name, shape):
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    message = refusal()
    assert f"{name} is {shape}, config.json promises" in message
    assert "weights and config.json belong to different models" in message


def test_a_missing_shard(folder, refusal, sharded):
    shutil.rmtree(folder)
    shutil.copytree(sharded, folder)
    files = sorted(path.name for path in folder.glob("model-*.safetensors"))
    (folder / files[1]).unlink()
    assert refusal() == f"FOLDER: 1 of {len(files)} shards are missing, first {files[1]}"


def test_an_index_beside_another_file(folder, refusal, sharded):
    for path in sharded.glob("*.safetensors*"):
        shutil.copy(path, folder)
    assert refusal().startswith("FOLDER: holds both model.safetensors and model.safetensors.index.json, which names")


def test_an_index_of_the_only_file_is_read(folder, alone):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "model.safetensors"}}')
    load(folder)


def test_a_tensor_in_two_shards(folder, refusal, sharded):
    shutil.rmtree(folder)
    shutil.copytree(sharded, folder)
    *_, last = sorted(folder.glob("model-*.safetensors"))
    save_file(load_file(last) | {"model.embed_tokens.weight": torch.ones(131, 64)}, last)
    assert re.match(r"FOLDER: model.embed_tokens.weight is in .* and in model-.*; remove the file", refusal())


def test_an_adapter(folder, refusal):
    (folder / "adapter_config.json").write_text("{}")
    assert refusal().startswith("FOLDER: adapter_config.json: transformers would add an adapter to these weights")


@pytest.mark.parametrize(
    ("dtype", "told"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float64, "F64")]
)
def test_a_dtype_whose_values_are_no_weights(folder, refusal, dtype, told):
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    expected = f"FOLDER/model.safetensors: {name} is stored as {told}; supported: F32, BF16, F16"
    assert refusal().startswith(expected)


def test_frequencies_that_follow_from_the_config_may_be_stored(folder, alone):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    load(folder)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_an_index_that_is_none(folder, refusal, text):
    (folder / "model.safetensors.index.json").write_text(text)
    assert refusal().startswith("FOLDER/model.safetensors.index.json: not a safetensors index")


def test_shards_load_as_the_whole_file_does(alone, folder, sharded):
    from megatron_gopd.mcore import weights

    whole, cut = (dict(weights.export(load(path))) for path in (folder, sharded))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
