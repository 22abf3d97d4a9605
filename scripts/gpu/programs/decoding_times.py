"""Seconds of a decode step of the embedded engine: decoding_times.py MODEL DTYPE ROWS FILE"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np

from megatron_gopd.ranks import ranks
from scripts.gpu.programs.timing import once

PROMPT, FEW, MANY = 64, 16, 80  # tokens


def main(model: str, dtype: str, rows: int, answer: Path) -> None:
    with ranks():
        from megatron_gopd.rollout.embedded import EmbeddedEngine

        engine = EmbeddedEngine(model, dtype=dtype, max_response_tokens=MANY)
        engine.stop_ids = []  # every row decodes as long as the others
        prompts = np.random.default_rng(0).integers(3, 100, size=(rows, PROMPT)).tolist()
        uniforms = np.random.default_rng(1).random((rows, MANY))

        def decode(tokens: int) -> None:
            engine.decode(prompts, tokens, uniforms[:, :tokens])

        decode(MANY)
        few, many = (once(functools.partial(decode, tokens)) for tokens in (FEW, MANY))
    answer.write_text(json.dumps({"step_s": (many - few) / (MANY - FEW), "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
