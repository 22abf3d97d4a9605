"""Models whose responses are as long as prompts say: a prompt's last token is a state, and states count down.

A state stays with probability 1 - 1/hold and is followed by the one below otherwise; below the last is the stop id. So
a response to state s has s * hold tokens on average, with a small spread: lengths are as heavy-tailed as prompts are
written, and each ends by the stop id.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

STOP, STATES = 0, 60  # ids 1 to STATES are states
PROBABILITY_0 = -1000.0  # nats; exp() of it is 0
PROMPT_TOKENS = 8


def save_chain_model(folder: Path, hold: float, hidden_size: int = 64, layers: int = 2) -> Path:
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    sizes = {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "num_hidden_layers": layers}
    heads = {"num_attention_heads": hidden_size // 32, "num_key_value_heads": 2, "head_dim": 32}
    ids = {"vocab_size": STATES + 1, "eos_token_id": STOP, "bos_token_id": None, "pad_token_id": STOP}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, **ids, tie_word_embeddings=False, rms_norm_eps=1e-12))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)  # attention and MLP add nothing
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        head[:, : STATES + 1] = PROBABILITY_0
        for state in range(1, STATES + 1):
            embedding[state, state] = 1.0
            head[state, state], head[state - 1, state] = np.log(1 - 1 / hold), np.log(1 / hold)
        embedding[STOP, STOP], head[STOP, STOP] = 1.0, 0.0
        head /= hidden_size**0.5  # the norm makes a unit vector that long
    model.generation_config = GenerationConfig(eos_token_id=STOP, pad_token_id=STOP)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def write_prompts(path: Path, states: list[int], seed: int = 0) -> Path:
    """A prompt for each, which ends with it."""
    random = np.random.default_rng(seed)
    fill = random.integers(1, STATES + 1, (len(states), PROMPT_TOKENS - 1)).tolist()
    rows = [
        {"id": f"prompt-{number}", "prompt": "".join(map(_character, [*before, state]))}
        for number, (before, state) in enumerate(zip(fill, states, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _tokenizer():
    """A token a character; those that are no state's are read as the first."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    characters = {_character(state): state for state in range(1, STATES + 1)}
    backend = Tokenizer(WordLevel({"<eos>": STOP} | characters, unk_token=_character(1)))
    backend.pre_tokenizer = Split(Regex("."), "isolated")
    backend.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<eos>")


def _character(state: int) -> str:
    return chr(0x4E00 + state)
