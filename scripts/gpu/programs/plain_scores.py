"""Log-probs and entropies by transformers, row by row: plain_scores.py DEVICE DTYPE MODEL ROWS FILE

ROWS is what `megatron-gopd score` reads. The model computes in DTYPE, the softmax in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def scores(model, row: dict, device: str) -> dict:
    prompt, response = row["prompt_tokens"], row["response_tokens"]
    tokens = torch.tensor([[*prompt, *response]], device=device)
    law = model(tokens).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
    logprobs = law.gather(1, tokens[0, len(prompt) :, None])[:, 0]
    return {"id": row["id"], "logprobs": logprobs.tolist(), "entropy": (-(law.exp() * law).sum(1)).tolist()}


def main(device: str, dtype: str, model: str, rows: Path, file: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), attn_implementation="eager")
    loaded = loaded.to(device).eval()
    file.write_text(json.dumps([scores(loaded, json.loads(row), device) for row in rows.read_text().splitlines()]))


if __name__ == "__main__":
    device, dtype, model, *files = sys.argv[1:]
    main(device, dtype, model, *map(Path, files))
