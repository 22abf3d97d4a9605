"""What cannot be converted: told in one message, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_gopd.errors import UserError


@pytest.fixture
def hf(models, tmp_path):
    """A Hugging Face directory to damage."""
    return shutil.copytree(models["qwen3-tied"], tmp_path / "model")


@pytest.fixture(scope="module")
def converted(models, alone, tmp_path_factory):
    from megatron_gopd.mcore.convert import hf_to_megatron

    folder = tmp_path_factory.mktemp("converted") / "model"
    hf_to_megatron(models["qwen3-tied"], folder)
    return folder


@pytest.fixture
def megatron(converted, tmp_path):
    """A converted folder to damage."""
    return shutil.copytree(converted, tmp_path / "model")


@pytest.fixture
def refusal(alone, tmp_path):
    """refusal(direction, source, [target]): what the user is told; paths start with TMP."""
    from megatron_gopd.mcore import convert

    def refusal(direction: str, source: Path, target: Path = tmp_path / "target") -> str:
        existing = target.exists() and sorted(target.iterdir())
        with pytest.raises(UserError) as caught:
            getattr(convert, direction)(source, target)
        assert (target.exists() and sorted(target.iterdir())) == existing
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
        return str(caught.value).replace(str(tmp_path), "TMP")

    return refusal


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def flip_a_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------- from Hugging Face
def test_an_unsupported_architecture(hf, refusal):
    change_config(hf, model_type="mamba")
    assert "model_type 'mamba' is not supported; supported: llama" in refusal("hf_to_megatron", hf)


def test_a_missing_shard(sharded, tmp_path, refusal):
    folder = shutil.copytree(sharded, tmp_path / "model")
    sorted(folder.glob("*.safetensors"))[2].unlink()
    assert "shards are missing, first model-00003-of" in refusal("hf_to_megatron", folder)


def test_a_truncated_shard(sharded, tmp_path, refusal):
    folder = shutil.copytree(sharded, tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.write_bytes(shard.read_bytes()[:-1])
    assert f"{shard.name}: damaged or truncated safetensors file" in refusal("hf_to_megatron", folder)


def test_a_truncated_index(sharded, tmp_path, refusal):
    folder = shutil.copytree(sharded, tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text()[:-20])
    assert "model.safetensors.index.json: not a safetensors index" in refusal("hf_to_megatron", folder)


def test_values_that_are_not_finite(hf, refusal):
    rewrite(hf, lambda tensors: tensors["model.layers.3.mlp.up_proj.weight"][1].fill_(torch.nan))
    assert "model.layers.3.mlp.up_proj.weight holds 64 NaN" in refusal("hf_to_megatron", hf)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 5}, "model.layers.4.input_layernorm.weight is missing"),
        (
            {"num_hidden_layers": 3},
            "model.layers.3.input_layernorm.weight holds 64 values config.json does not",
        ),
        ({"intermediate_size": 97}, "mlp.gate_proj.weight is [96, 64], config.json promises [97, 64]"),
        ({"num_key_value_heads": 2}, "self_attn.k_proj.weight is [64, 64], config.json promises [32, 64]"),
        ({"vocab_size": 130}, "model.embed_tokens.weight is [131, 64], config.json promises [130, 64]"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"model_type": "llama"}, "q_norm.weight holds 16 values config.json does not promise"),
    ],
)
def test_a_config_of_another_model(hf, refusal, changes, told):
    change_config(hf, **changes)
    message = refusal("hf_to_megatron", hf)
    assert message.startswith("TMP/model: weights and config.json belong to different models")
    assert told in message


def test_more_experts_than_config_says(mixture, tmp_path, refusal):
    folder = shutil.copytree(mixture, tmp_path / "model")
    change_config(folder, num_experts=7, num_local_experts=7)
    assert "mlp.gate.weight is [8, 64], config.json promises [7, 64]" in refusal("hf_to_megatron", folder)


@pytest.fixture(scope="module")
def mixture(models, tmp_path_factory):
    from tests.tiny_models import save_tiny

    return save_tiny(tmp_path_factory.mktemp("mixture"), "qwen3moe-tied")


def test_layers_of_two_dtypes(hf, refusal):
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite(hf, lambda tensors: tensors.update({name: tensors[name].half()}))
    assert f"model.layers.0.mlp.down_proj.weight as F32 and {name} as F16" in refusal("hf_to_megatron", hf)


def test_a_head_that_is_not_the_embedding_it_is_tied_to(hf, refusal):
    head = torch.ones(131, 64)
    rewrite(hf, lambda tensors: tensors.update({"lm_head.weight": head}))
    assert "config.json ties the embeddings, but lm_head.weight is not" in refusal("hf_to_megatron", hf)


def test_a_head_that_is_the_embedding_is_left_out(hf, alone, tmp_path):
    from megatron_gopd.mcore.convert import hf_to_megatron

    rewrite(hf, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    hf_to_megatron(hf, tmp_path / "target", verify=True)


# ---------------------------------------------------------------- from Megatron
@pytest.mark.parametrize(("file", "at"), [("__0_0.distcp", 400_000), ("__0_0.distcp", 10), (".metadata", 300)])
def test_a_flipped_bit(megatron, refusal, file, at):
    flip_a_bit(megatron / "state" / file, at)
    message = refusal("megatron_to_hf", megatron)
    assert message == f"TMP/model is damaged (1 of 5 files): state/{file}: its checksum differs"


def test_a_missing_file(megatron, refusal):
    (megatron / "state" / "__0_0.distcp").unlink()
    assert "state/__0_0.distcp: No such file" in refusal("megatron_to_hf", megatron)


def test_no_manifest(megatron, refusal):
    (megatron / "manifest.json").unlink()
    assert "has no manifest.json: it is not complete" in refusal("megatron_to_hf", megatron)


def test_a_checkpoint_of_another_architecture(megatron, refusal):
    change_config(megatron, num_hidden_layers=3, rope_theta=5e5, rope_parameters=None)
    message = refusal("megatron_to_hf", megatron)
    assert "layers: 4 in the checkpoint, 3 in config.json" in message
    assert "rope_theta: 10000.0 in the checkpoint, 500000.0 in config.json" in message


def test_a_hugging_face_directory_is_no_checkpoint(hf, refusal):
    assert "is no Megatron checkpoint of megatron-gopd" in refusal("megatron_to_hf", hf)


# ---------------------------------------------------------------- the target
@pytest.mark.parametrize("direction", ["hf_to_megatron", "megatron_to_hf"])
def test_a_target_that_exists(models, converted, tmp_path, refusal, direction):
    source = {"hf_to_megatron": models["qwen3-tied"], "megatron_to_hf": converted}[direction]
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("keep me")
    assert refusal(direction, source) == "TMP/target exists; name a new folder, or remove it"


@pytest.mark.parametrize("direction", ["hf_to_megatron", "megatron_to_hf"])
def test_a_target_where_nothing_can_be_written(models, converted, refusal, direction):
    source = {"hf_to_megatron": models["qwen3-tied"], "megatron_to_hf": converted}[direction]
    assert "/proc/none/target cannot be written" in refusal(direction, source, Path("/proc/none/target"))


def test_an_empty_target_is_filled(models, alone, tmp_path):
    from megatron_gopd.mcore.convert import hf_to_megatron

    (tmp_path / "target").mkdir()
    hf_to_megatron(models["qwen3-tied"], tmp_path / "target")
    assert (tmp_path / "target" / "manifest.json").exists()
