"""`megatron-gopd serve-scorer`: a frozen Megatron model that other jobs ask for log-probs, or for hidden states."""

from __future__ import annotations

import os
import queue
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

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
from megatron_gopd.servers.scorer_service import AskedStates, AskedSupport, ScorerService, Waiting
from megatron_gopd.servers.top_logprobs import NOBODY
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


class _Asked(NamedTuple):
    """A row, and what of it."""

    row: Row
    temperature: float | None  # None: its hidden states
    ids: np.ndarray | None  # [response, k]: their log-probs too

    @classmethod
    def of(cls, asked: AskedStates) -> Self:
        ids = np.array(asked.ids, dtype=np.int32) if isinstance(asked, AskedSupport) else None
        row = Row(np.array(asked.prompt_tokens, dtype=np.int32), np.array(asked.response_tokens, dtype=np.int32))
        return cls(row, getattr(asked, "temperature", None), ids)

    @property
    def kind(self) -> tuple[float | None, int]:
        """Of what is computed together."""
        return self.temperature, 0 if self.ids is None else self.ids.shape[1]


def _answer(service: ScorerService | None, scorer: Model | None, nothing: Held, max_tokens: int) -> None:
    """One pass: what has come in until now; log-probs by temperature, hidden states as many as memory takes."""
    taken: list[Waiting] = _take(service) if is_first() else []
    asked = on_first(lambda: [_Asked.of(waiting.asked) for waiting in taken])
    for numbers in _together(asked, STATES_BYTES // nothing.token_bytes):
        found = _found(scorer, nothing, [asked[number] for number in numbers], max_tokens)
        if is_first():
            for number, values in zip(numbers, found, strict=True):
                taken[number].answer.set_result(values)


def _found(scorer: Model | None, nothing: Held, asked: Sequence[_Asked], max_tokens: int) -> Sequence:
    """What is asked of rows that are all asked the same; on rank 0 at least. Collective over all ranks."""
    rows = [each.row for each in asked]
    temperature, width = asked[0].kind
    if temperature is None:
        return _states(scorer, nothing, rows, max_tokens)
    if not width:
        return scoring.score(scorer, rows, temperature=temperature, max_tokens=max_tokens)[0]
    ids = [each.ids for each in asked]
    found = scoring.score_support(scorer, rows, ids, temperature=temperature, max_tokens=max_tokens)
    return [np.where(of_row == NOBODY, 0.0, values) for of_row, values in zip(ids, found, strict=True)]


def _together(asked: Sequence[_Asked], most: int) -> Iterator[list[int]]:
    """Numbers of rows that are scored together; of hidden states, about `most` tokens at a time."""
    by_kind: dict[tuple, list[int]] = defaultdict(list)
    for number, each in enumerate(asked):
        by_kind[each.kind].append(number)
    wanted = by_kind.pop((None, 0), [])
    yield from by_kind.values()
    for places in in_order([len(asked[number].row.response_tokens) for number in wanted], most):
        yield [wanted[place] for place in places]


def _states(scorer: Model | None, nothing: Held, rows: Sequence[Row], max_tokens: int) -> Sequence[torch.Tensor]:
    """[response, h] of each row, on rank 0; nothing on the others. Collective over all ranks."""
    lengths = torch.tensor([len(row.response_tokens) for row in rows])
    starts, tokens = lengths.cumsum(0) - lengths, int(lengths.sum())
    held = nothing
    if scorer is not None:
        held = hidden_states(scorer, rows, starts, nothing.values.dtype, max_tokens)
    found = fetch(held, torch.arange(tokens if is_first() else 0), tokens)
    return found.split(lengths.tolist()) if is_first() else ()


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
