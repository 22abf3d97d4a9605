from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_gopd.errors import UserError

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
}
TOKENS = torch.arange(10).reshape(1, 10)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, initializer_range=0.2)).eval()


@pytest.fixture(params=["100GB", "10KB"], ids=["one file", "shards"])
def folder(request, llama, tmp_path):
    llama.save_pretrained(tmp_path / "model", max_shard_size=request.param)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def prune(tool):
    return tool("prune_depth").prune_depth


def without(model, drop: list[int]) -> torch.nn.Module:
    """The model in memory, its layers deleted."""
    model = copy.deepcopy(model)
    kept = [layer for number, layer in enumerate(model.model.layers) if number not in drop]
    for number, layer in enumerate(kept):
        layer.self_attn.layer_idx = number
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model


@torch.no_grad()
def test_logits_are_those_of_the_model_without_the_layers(prune, llama, folder, tmp_path):
    assert prune(folder, tmp_path / "pruned", [1, 4]) == 4
    pruned, report = LlamaForCausalLM.from_pretrained(tmp_path / "pruned", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(pruned(TOKENS).logits, without(llama, [1, 4])(TOKENS).logits)


def test_the_index_names_what_the_shards_hold(prune, folder, tmp_path):
    prune(folder, tmp_path / "pruned", [0, 5])
    index = tmp_path / "pruned" / "model.safetensors.index.json"
    assert index.exists() == (folder / index.name).exists()
    if index.exists():
        shards = {path.name: load_file(path) for path in index.parent.glob("*.safetensors")}
        content = json.loads(index.read_text())
        assert content["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
        sizes = (tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
        assert content["metadata"]["total_size"] == sum(sizes)


def test_tokenizer_and_generation_files_come_along(prune, folder, tmp_path):
    prune(folder, tmp_path / "pruned", [0])
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "pruned" / name).read_text() == (folder / name).read_text()


def test_layer_types_lose_the_same_layers(prune, tmp_path):
    kinds = ["full_attention"] * 4 + ["sliding_attention"] * 2
    config = Qwen3Config(**SMALL, layer_types=kinds, use_sliding_window=True, sliding_window=4)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "model")
    prune(tmp_path / "model", tmp_path / "pruned", [0, 4])
    pruned = json.loads((tmp_path / "pruned" / "config.json").read_text())
    assert pruned["num_hidden_layers"] == 4
    assert pruned["layer_types"] == ["full_attention"] * 3 + ["sliding_attention"]


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ([6], "has the layers 0 to 5"),
        ([-1], "has the layers 0 to 5"),
        ([2, 2], "names layer 2 twice"),
        ([0, 1, 2, 3, 4, 5], "leave at least one"),
    ],
)
def test_a_wrong_list_of_layers_is_refused(prune, folder, tmp_path, drop, message):
    with pytest.raises(UserError, match=message):
        prune(folder, tmp_path / "pruned", drop)
    assert not (tmp_path / "pruned").exists()


def test_an_existing_output_is_refused(prune, folder, tmp_path):
    with pytest.raises(UserError, match="exists; name a new folder"):
        prune(folder, tmp_path, [1])


def test_weights_that_are_not_the_configs_leave_nothing_behind(prune, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    with pytest.raises(UserError, match="says 7 layers, the weights hold 6"):
        prune(folder, tmp_path / "pruned", [1])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_truncated_file_is_named(prune, folder, tmp_path):
    victim = min(folder.glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(UserError, match=victim.name):
        prune(folder, tmp_path / "pruned", [1])


def test_a_folder_that_is_no_model_is_refused(prune, tmp_path):
    with pytest.raises(UserError, match="config.json"):
        prune(tmp_path, tmp_path / "pruned", [1])


def test_a_user_reads_one_line(run, tmp_path):
    result = run("prune_depth", tmp_path, tmp_path / "pruned", "--drop", "1,x")
    assert result.returncode == 2
    assert result.stderr == "error: --drop '1,x' is no list of layer numbers; write 12,16,20\n"


@pytest.mark.parametrize("name", ["prune_depth", "get_smollm2", "get_gsm8k", "prepare_data"])
def test_help_is_there(run, name):
    result = run(name, "--help")
    assert result.returncode == 0 and "Usage" in result.stdout
