"""Seconds of a decode step of the embedded engine: decoding_times.py LARGE SMALL DTYPE ROWS FILE

LARGE is decoded in DTYPE by both ways of the engine, SMALL in float32 by both, to see that they draw the same.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from megatron_gopd import machine
from megatron_gopd.ranks import ranks
from scripts.gpu.programs.launches import Launches
from scripts.gpu.programs.timing import once

PROMPT, FEW, MANY = 64, 16, 80  # tokens
ON_CPU = 2**30  # bytes that a GPU would have


def main(large: str, small: str, dtype: str, rows: int, answer: Path) -> None:
    with ranks():
        found = {"rows": rows, "agreement": agreement(small)}
        found |= {str(each): of_rows(large, dtype, each) for each in (rows, rows // 2)}
    answer.write_text(json.dumps(found))


def ways(folder: str, dtype: str, rows: int):
    """{way: decode(prompts, max_tokens=, uniforms=), every row as long as the others}, and the model."""
    from megatron_gopd.rollout.embedded import load_for_decoding
    from megatron_gopd.rollout.fixed_decode import FixedDecoder
    from megatron_gopd.rollout.sampling import decode

    model = load_for_decoding(folder, dtype)
    gpu = machine.device().type == "cuda"
    memory = torch.cuda.mem_get_info()[1] if gpu else ON_CPU
    calls = {"replayed": FixedDecoder(model, rows, memory).decode, "launched": partial(decode, model)}
    return {name: partial(call, stop_ids=[]) for name, call in calls.items()}, model


def drawn(rows: int, tokens: int) -> tuple[list, np.ndarray]:
    prompts = np.random.default_rng(0).integers(3, 100, size=(rows, PROMPT)).tolist()
    return prompts, np.random.default_rng(1).random((rows, tokens))


def of_rows(folder: str, dtype: str, rows: int) -> dict:
    """Seconds of a step by each way, and of the first decoding over a later one; operations that a step launches."""
    prompts, uniforms = drawn(rows, MANY)
    found = {}
    calls, model = ways(folder, dtype, rows)
    for name, call in calls.items():

        def decode(tokens: int, call=call) -> None:
            call(prompts, max_tokens=tokens, uniforms=uniforms[:, :tokens])

        first = once(partial(decode, MANY))
        few, many = (once(partial(decode, tokens)) for tokens in (FEW, MANY))
        found[name] = {"step_s": (many - few) / (MANY - FEW), "first_s": max(0.0, first - many)}
    return found | {"launches": launches(model, rows)}


def launches(model, rows: int) -> int:
    """Of one step that is replayed."""
    from megatron_gopd.data.buckets import Bucket
    from megatron_gopd.rollout.fixed_batch import Room
    from megatron_gopd.rollout.fixed_step import step

    bucket = Bucket(rows, 2 * PROMPT)
    with torch.inference_mode():
        room = Room(model, bucket)
        room.cache.begin(bucket)
        room.cache.prompts_end()
        with Launches() as counted:
            step(model, room.cache, room.slots.of(bucket), greedy=False)
    return counted.count


def agreement(folder: str) -> dict:
    """Of the two ways in float32: the share of equal tokens, and how far log-probs of equal beginnings are apart."""
    prompts, uniforms = drawn(12, MANY)
    calls, _ = ways(folder, "float32", 12)
    one, other = (call(prompts, max_tokens=MANY, uniforms=uniforms) for call in calls.values())
    equal, furthest = 0, 0.0
    for mine, theirs in zip(one, other, strict=True):
        same = int(np.cumprod(mine.tokens == theirs.tokens).sum())
        equal += same
        furthest = max(furthest, float(np.abs(mine.logprobs[:same] - theirs.logprobs[:same]).max(initial=0.0)))
    return {"equal": equal / (12 * MANY), "nats": furthest}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
