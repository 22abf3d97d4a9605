"""`megatron-gopd serve-scorer`: a frozen Megatron model that other jobs ask for log-probs, or for hidden states."""

from __future__ import annotations

import os
import queue
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_gopd.config import Layout
from megatron_gopd.data.packing import Row, in_order
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.frozen import frozen_model
from megatron_gopd.mcore.megatron_folder import is_megatron_folder
from megatron_gopd.mcore.model import Model
from megatron_gopd.policies import scoring
from megatron_gopd.policies.exchange import fetch
from megatron_gopd.policies.hidden_states import Held, hidden_states
from megatron_gopd.policies.identity import describe, fingerprint
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.servers.scorer_service import AskedStates, ScorerService, Waiting
from megatron_gopd.terminal import say

TOKEN = "MEGATRON_GOPD_TOKEN"
HEARTBEAT_S = 60.0  # the other ranks wait in a collective, which has a timeout of its own
ROWS = 256  # at most, of one pass over the ranks
STATES_BYTES = 2**30  # of hidden states that are brought to rank 0 at a time, or one row's


def serve_scorer(model: Path, *, layout: Layout, dtype: str, host: str, port: int, max_tokens: int) -> None:
    """Load `model` and answer until interrupted. Collective over all ranks; rank 0 listens.

    Raises:
        UserError: the model or its layout is unfit, the port is taken, or a token is missing.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"--dtype {dtype}: choose float32 or bfloat16")
    scorer = frozen_model(model, layout, dtype)  # None: layout.ranks leaves this rank out
    nothing = Held.nothing(Architecture.read(model).hidden_size, getattr(torch, dtype))
    services: list[ScorerService] = []
    on_first(lambda: services.append(_listen(model, dtype, host, port)))  # a service stays on its rank
    try:
        while True:
            _answer(services[0] if services else None, scorer, nothing, max_tokens)
    finally:
        for service in services:
            service.close()


def _listen(model: Path, dtype: str, host: str, port: int) -> ScorerService:
    told = None if is_megatron_folder(model) else fingerprint(model, dtype)
    about = describe(model) | {"dtype": dtype, "fingerprint": told}
    vocab_size = about["architecture"]["vocab_size"]
    service = ScorerService(host, port, about=about, vocab_size=vocab_size, token=os.environ.get(TOKEN))
    say(f"serving {about['model_path']} on http://{host}:{service.port}", flush=True)
    return service


def _answer(service: ScorerService | None, scorer: Model | None, nothing: Held, max_tokens: int) -> None:
    """One pass: what has come in until now; log-probs by temperature, hidden states as many as memory takes."""
    taken: list[Waiting] = _take(service) if is_first() else []
    asked = on_first(lambda: [(getattr(waiting.asked, "temperature", None), _row(waiting.asked)) for waiting in taken])
    for temperature, numbers in _together(asked, STATES_BYTES // nothing.token_bytes):
        rows = [asked[number][1] for number in numbers]
        if temperature is None:
            found = _states(scorer, nothing, rows, max_tokens)
        else:
            found, _ = scoring.score(scorer, rows, temperature=temperature, max_tokens=max_tokens)
        if is_first():
            for number, values in zip(numbers, found, strict=True):
                taken[number].answer.set_result(values)


def _together(asked: Sequence[tuple[float | None, Row]], most: int) -> Iterator[tuple[float | None, list[int]]]:
    """Numbers of rows that are scored together; temperature None: of hidden states, about `most` tokens at a time."""
    by_temperature: dict[float | None, list[int]] = defaultdict(list)
    for number, (temperature, _) in enumerate(asked):
        by_temperature[temperature].append(number)
    wanted = by_temperature.pop(None, [])
    yield from by_temperature.items()
    for places in in_order([len(asked[number][1].response_tokens) for number in wanted], most):
        yield None, [wanted[place] for place in places]


def _states(scorer: Model | None, nothing: Held, rows: Sequence[Row], max_tokens: int) -> Sequence[torch.Tensor]:
    """[response, h] of each row, on rank 0; nothing on the others. Collective over all ranks."""
    lengths = torch.tensor([len(row.response_tokens) for row in rows])
    starts, tokens = lengths.cumsum(0) - lengths, int(lengths.sum())
    held = nothing
    if scorer is not None:
        held = hidden_states(scorer, rows, starts, nothing.values.dtype, max_tokens)
    found = fetch(held, torch.arange(tokens if is_first() else 0), tokens)
    return found.split(lengths.tolist()) if is_first() else ()


def _row(asked: AskedStates) -> Row:
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
