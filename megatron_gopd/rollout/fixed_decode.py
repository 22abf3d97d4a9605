"""Decoding on a GPU: a cache that stays in its place, and steps that are replayed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from megatron_gopd.data.buckets import MOST, bucket, rows_at_a_time, stays
from megatron_gopd.ranks import is_first
from megatron_gopd.rollout.fixed_batch import Asked, FixedBatch, Room
from megatron_gopd.rollout.fixed_cache import token_bytes
from megatron_gopd.rollout.sampling import Response
from megatron_gopd.runs.progress import Count
from megatron_gopd.terminal import say


class FixedDecoder:
    """Decodes with whatever `model` holds: captured steps know the places of its weights, not their values."""

    def __init__(self, model: PreTrainedModel, most_rows: int, memory: float):
        """`memory`: bytes of the GPU, of which the cache takes its share (data/buckets.py) when prompts come."""
        self._model, self._most_rows, self._memory = model, most_rows, memory
        self._token_bytes = token_bytes(model.config, model.dtype.itemsize)
        self._room: Room | None = None
        self._told = False

    @torch.inference_mode()
    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        stop_ids: Sequence[int],
        temperature: float = 1.0,
        uniforms: np.ndarray | None = None,
        count: Count | None = None,
    ) -> list[Response]:
        """See sampling.decode; as many rows at a time as the cache's share of the memory holds."""
        tokens = max(map(len, prompts)) + max_tokens
        asked = min(self._most_rows, len(prompts))
        rows = rows_at_a_time(asked, tokens, self._token_bytes, self._memory)
        if rows < asked:
            self._tell(rows, tokens)
        room = self._room_for(rows, tokens)
        room.slots.temperature.fill_(temperature)
        found: list[Response] = []
        for first in range(0, len(prompts), rows):
            part = slice(first, first + rows)
            drawn = None if uniforms is None else torch.from_numpy(uniforms[part])
            asked = Asked(prompts[part], max_tokens, frozenset(stop_ids), drawn, count or Count(0))
            found += FixedBatch(self._model, room, asked).decode()
        return found

    def rest(self) -> None:
        """Nothing is decoded for a while: a cache that is not small goes, and with it what was captured."""
        if self._room and not stays(self._room.most.room * self._token_bytes, self._memory):
            self._room = None

    def _tell(self, rows: int, tokens: int) -> None:
        """Once."""
        if not self._told and is_first():
            room = f"{MOST * self._memory / 2**30:.1f} GiB hold no more of {tokens} tokens"
            say(f"decoding {rows} rows at a time, not {self._most_rows}: {room}")
        self._told = True

    def _room_for(self, rows: int, tokens: int) -> Room:
        """What is there, where it is enough: what was captured knows its places."""
        most = bucket(rows, tokens, rows)
        if self._room is None or self._room.most.rows < rows or self._room.most.tokens < most.tokens:
            self._room = None  # before there are two
            self._room = Room(self._model, most)
        return self._room
