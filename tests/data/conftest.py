"""Real tokenizers, small enough to train in a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SENTENCES = [
    "What is one plus two?",
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Write Python code to solve the problem. Present the code in\n```python\nYour code\n```\nat the end.",
    "The quick brown fox jumps over the lazy dog.",
] * 8

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OTHER_TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[assistant]"


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    return SENTENCES


@pytest.fixture(scope="session")
def backend():
    """A byte-level BPE with ChatML tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def save_tokenizer(backend):
    """save_tokenizer(folder, template): write the BPE as a Hugging Face directory."""
    from transformers import PreTrainedTokenizerFast

    def save(folder: Path, template: str | None = CHAT_TEMPLATE, extra: tuple[str, ...] = ()) -> Path:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
        tokenizer.add_tokens(list(extra))
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def chat_folder(save_tokenizer, tmp_path_factory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="session")
def other_folder(save_tokenizer, tmp_path_factory) -> Path:
    """The same vocabulary with another chat template."""
    return save_tokenizer(tmp_path_factory.mktemp("other"), OTHER_TEMPLATE)


@pytest.fixture
def write_rows(tmp_path):
    """write_rows(rows, name): a jsonl file in tmp_path."""

    def write(rows: list[dict], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
