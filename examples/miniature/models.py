"""The miniature's models before any training: a small Qwen3 with random weights, and a character-level tokenizer.

python examples/miniature/models.py assets/miniature/untrained
python examples/miniature/models.py assets/miniature/untrained-weak --hidden-size 48
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EOS = "<eos>"
CHARACTERS = "0123456789+-=:ABCabcdefghrlsu"
HEAD_DIM = 16


def write_untrained(folder: Path, hidden_size: int = 64, layers: int = 3, seed: int = 0) -> int:
    """Write a Hugging Face directory; returns the number of parameters."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(CHARACTERS) + 1,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=hidden_size // HEAD_DIM,
            num_key_value_heads=hidden_size // HEAD_DIM,
            head_dim=HEAD_DIM,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            max_position_embeddings=64,
            initializer_range=0.7 / hidden_size**0.5,
            tie_word_embeddings=True,
            eos_token_id=0,
            bos_token_id=None,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0.0, 0.02)
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model.num_parameters()


def tokenizer():
    """A token a character; <eos> ends an answer. There is no chat template: a prompt is read as it stands."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({token: number for number, token in enumerate([EOS, *CHARACTERS])}))
    backend.pre_tokenizer = Split(Regex("."), "isolated")
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=EOS, model_max_length=64)


def main(
    folder: Annotated[Path, typer.Argument(help="folder of the model")],
    hidden_size: Annotated[int, typer.Option(help="a multiple of 16")] = 64,
    layers: Annotated[int, typer.Option()] = 3,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Write a model with random weights as a Hugging Face directory."""
    print(f"{folder}: {write_untrained(folder, hidden_size, layers, seed):,} parameters")


if __name__ == "__main__":
    typer.run(main)
