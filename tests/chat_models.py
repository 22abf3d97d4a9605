"""Tiny models as a user has them: weights, a tokenizer trained on the spot, a chat template, stop ids."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

SENTENCES = [f"What is {a} plus {b}? The answer is {a + b}." for a in range(10) for b in range(10)]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.12,
}
PROBABILITY_0 = -1000.0  # nats; exp() of it is 0


@cache
def tokenizer(letters: int = 300):
    """A byte-level BPE with ChatML tokens and about `letters` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=letters, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    trained = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    trained.chat_template = TEMPLATE
    return trained


def save_chat_model(folder: Path, *, seed: int = 0, letters: int = 300, family: str = "Qwen3", **changes) -> Path:
    """Write a model with random weights to `folder`; `changes` are of its config.json.

    Call it where no process group is initialised: transformers then saves on rank 0 only.
    """
    return _save(folder, _random(seed, letters, family, changes), letters)


def save_bigram_model(folder: Path, laws: dict[int, dict[int, float]]) -> Path:
    """Write a model that knows the last token only: `laws` is {token: {next token: probability}}.

    Whatever follows a token that `laws` does not know has a uniform law.
    """
    import torch

    model = _random(0, 300, "Qwen3", {"rms_norm_eps": 1e-12})
    states = {token: number for number, token in enumerate(laws, 1)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)  # attention and MLP add nothing
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, 0] = 1.0
        for token, state in states.items():
            embedding[token] = torch.eye(SIZES["hidden_size"])[state]
            head[:, state] = PROBABILITY_0
            for following, probability in laws[token].items():
                head[following, state] = np.log(probability)
        head /= SIZES["hidden_size"] ** 0.5  # the norm makes a unit vector that long
    return _save(folder, model, 300)


def prompt_tokens(question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer()(text)["input_ids"]


def token_id(text: str) -> int:
    """The id of text that is one token."""
    (token,) = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return token


def write_questions(path: Path, count: int, **columns) -> Path:
    """`count` prompts with labels as jsonl; a column is a value, or a function of the row's number."""
    rows = []
    for number in range(count):
        a, b = divmod(number, 10)
        row = {"id": f"{path.stem}-{number}", "prompt": f"What is {a} plus {b}?", "label": str(a + b)}
        rows.append(row | {name: value(number) if callable(value) else value for name, value in columns.items()})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _random(seed: int, letters: int, family: str, changes: dict):
    import torch
    import transformers

    vocabulary = {"vocab_size": len(tokenizer(letters)), "tie_word_embeddings": False}
    config = getattr(transformers, f"{family}Config")(**SIZES | vocabulary | changes)
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config)


def _save(folder: Path, model, letters: int) -> Path:
    stops = [tokenizer(letters).convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = stops
    model.save_pretrained(folder)
    tokenizer(letters).save_pretrained(folder)
    return folder
