"""Random models with a tokenizer that knows every id, and prompts: models.py DEVICE small|large FOLDER"""

from __future__ import annotations

import json
import random
import sys
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from scripts.gpu.checks.sizes import LARGE, PROMPT_WORDS, SMALL, Size, size_of

TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
PROMPTS = 256


def save_model(size: Size, folder: Path, device: str) -> None:
    """In bf16; the weights are the name's."""
    settings = {
        "vocab_size": size.vocabulary,
        "hidden_size": size.hidden,
        "intermediate_size": size.feed_forward,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.groups,
        "head_dim": size.head,
        "initializer_range": size.spread,
        "tie_word_embeddings": size.tied,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    kind, config = Qwen3ForCausalLM, Qwen3Config
    if size.experts:
        kind, config = Qwen3MoeForCausalLM, Qwen3MoeConfig
        settings |= {"num_experts": size.experts, "num_experts_per_tok": 2, "moe_intermediate_size": size.feed_forward}
        settings |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    torch.manual_seed(zlib.crc32(folder.name.encode()))
    with torch.device(device):
        model = kind(config(**settings))
    with torch.no_grad():  # the padding's row, which is 0 and has a norm of 0, may be sampled as any other
        model.get_input_embeddings().weight[0].normal_(std=size.spread)
    model = model.to(torch.bfloat16)
    model.save_pretrained(folder)


def save_tokenizer(words: int, folder: Path) -> None:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{number}": number for number in range(3, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **special).save_pretrained(folder)


def write_prompts(words: int, file: Path) -> None:
    draw = random.Random(0)
    with file.open("w") as lines:
        for number in range(PROMPTS):
            text = " ".join(f"w{draw.randrange(3, words)}" for _ in range(draw.randint(*PROMPT_WORDS)))
            lines.write(json.dumps({"id": f"p{number}", "prompt": text, "label": "0"}) + "\n")


def main(device: str, kind: str, folder: Path) -> None:
    names = SMALL if kind == "small" else LARGE
    for name in names:
        size = size_of(name, device)
        save_model(size, folder / name, device)
        save_tokenizer(size.vocabulary, folder / name)
    write_prompts(size_of(names[0], device).vocabulary, folder / "prompts.jsonl")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
