"""`megatron-gopd serve-scorer`: a frozen Megatron model that other jobs ask for log-probs."""

from __future__ import annotations

import hashlib
import json
import os
import queue
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_gopd.config import Layout
from megatron_gopd.data import load_tokenizer
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.frozen import frozen_model
from megatron_gopd.mcore.model import Model
from megatron_gopd.policies import scoring
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.servers.scorer_service import Asked, ScorerService, Waiting

TOKEN = "MEGATRON_GOPD_TOKEN"
HEARTBEAT_S = 60.0  # the other ranks wait in a collective, which has a timeout of its own
ROWS = 256  # at most, of one pass over the ranks


def serve_scorer(model: Path, *, layout: Layout, dtype: str, host: str, port: int, max_tokens: int) -> None:
    """Load `model` and answer until interrupted. Collective over all ranks; rank 0 listens.

    Raises:
        UserError: the model or its layout is unfit, the port is taken, or a token is missing.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype {dtype}: choose float32 or bfloat16")
    about = describe(model) | {"dtype": dtype}
    scorer = frozen_model(model, layout, dtype)  # None: layout.ranks leaves this rank out
    services: list[ScorerService] = []
    on_first(lambda: services.append(_listen(about, host, port)))  # a service stays on its rank
    try:
        while True:
            _answer(services[0] if services else None, scorer, max_tokens)
    finally:
        for service in services:
            service.close()


def describe(model: str | Path) -> dict:
    """What tells a model from another: its architecture, and a digest of the tokenizer's map."""
    vocabulary = sorted(load_tokenizer(model).get_vocab().items())
    return {
        "model_path": str(model),
        "architecture": asdict(Architecture.read(model)),
        "tokenizer": hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest(),
    }


def _listen(about: dict, host: str, port: int) -> ScorerService:
    vocab_size = about["architecture"]["vocab_size"]
    service = ScorerService(host, port, about=about, vocab_size=vocab_size, token=os.environ.get(TOKEN))
    print(f"serving {about['model_path']} on http://{host}:{service.port}", flush=True)
    return service


def _answer(service: ScorerService | None, scorer: Model | None, max_tokens: int) -> None:
    """One pass: what has come in until now, by temperature."""
    taken: list[Waiting] = _take(service) if is_first() else []
    asked = on_first(lambda: [(waiting.asked.temperature, _row(waiting.asked)) for waiting in taken])
    by_temperature: dict[float, list[int]] = defaultdict(list)
    for number, (temperature, _) in enumerate(asked):
        by_temperature[temperature].append(number)
    for temperature, numbers in by_temperature.items():
        rows = [asked[number][1] for number in numbers]
        logprobs, _ = scoring.score(scorer, rows, temperature=temperature, max_tokens=max_tokens)
        for number, values in zip(numbers, logprobs, strict=True):
            if is_first():
                taken[number].answer.set_result(values)


def _row(asked: Asked) -> Row:
    return Row(np.array(asked.prompt_tokens, dtype=np.int32), np.array(asked.response_tokens, dtype=np.int32))


def _take(service: ScorerService) -> list[Waiting]:
    """At least one row, unless none comes for a while, and those that wait already."""
    taken: list[Waiting] = []
    try:
        taken.append(service.waiting.get(timeout=HEARTBEAT_S))
        while len(taken) < ROWS:
            taken.append(service.waiting.get_nowait())
    except queue.Empty:
        pass
    return taken
