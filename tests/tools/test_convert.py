from __future__ import annotations

from tests.tiny_models import save_tiny


def test_there_and_back(run, tmp_path):
    hf = save_tiny(tmp_path, "llama-tied")
    there = run("convert_hf_to_megatron", hf, tmp_path / "megatron", "--verify")
    assert there.returncode == 0, there.stderr
    back = run("convert_megatron_to_hf", tmp_path / "megatron", tmp_path / "back")
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_a_mistake_ends_in_one_message(run, tmp_path):
    done = run("convert_hf_to_megatron", tmp_path / "none", tmp_path / "megatron")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'} is no Hugging Face model directory: there is no such folder\n"
