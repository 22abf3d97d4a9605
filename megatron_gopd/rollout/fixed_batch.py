"""Rows that a GPU decodes together; the host looks at what was drawn every EVERY tokens only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_gopd.data.buckets import Bucket, bucket
from megatron_gopd.rollout.fixed_cache import FixedCache
from megatron_gopd.rollout.fixed_step import EVERY, Slots, draw, step
from megatron_gopd.rollout.graphs import Graphs
from megatron_gopd.rollout.sampling import Growing, Response, left_padded
from megatron_gopd.runs.progress import Count


class Room:
    """What steps read and write, for buckets up to `most`; and those that were captured, which know where it is."""

    def __init__(self, model: PreTrainedModel, most: Bucket):
        place = torch.zeros(1, dtype=torch.long, device=model.device)
        self.most = most
        self.cache = FixedCache(model.config, most.room, place)
        self.slots = Slots.made(most, model.dtype, model.device)
        self.graphs = Graphs(model.device)


@dataclass(frozen=True)
class Asked:
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    stop_ids: frozenset[int]
    uniforms: Tensor | None  # [prompts, max_tokens] float64; None: the likeliest tokens
    count: Count


class FixedBatch:
    """One use of a Room."""

    def __init__(self, model: PreTrainedModel, room: Room, asked: Asked):
        self._model, self._room, self._asked = model, room, asked
        self._greedy = asked.uniforms is None
        self._responses = [Growing() for _ in asked.prompts]
        self._held = self._done = 0  # tokens of a row in the cache; of them, or soon, drawn
        self._rows: list[int] = []  # which response each row belongs to; those of idle rows are the first one's
        self._busy = 0  # rows that are not idle
        self._bucket = Bucket(0, 0)

    def decode(self) -> list[Response]:
        self._read_prompts()
        while (active := self._look()) and self._done < self._asked.max_tokens:
            several = min(EVERY, self._asked.max_tokens - self._done)
            self._settle(active, self._held + several)
            self._draw_next(several)
        self._asked.count.add(len(active), 0)  # cut short
        return [response.response() for response in self._responses]

    def _read_prompts(self) -> None:
        """Into an empty cache, and the first tokens drawn."""
        prompts, cache, device = self._asked.prompts, self._room.cache, self._model.device
        longest = max(map(len, prompts)) + min(EVERY, self._asked.max_tokens)
        self._bucket = bucket(len(prompts), longest, self._room.most.rows)
        self._rows, self._busy = _filled(range(len(prompts)), self._bucket.rows), len(prompts)
        tokens, mask = left_padded([prompts[row] for row in self._rows], device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        self._held = mask.shape[1]
        cache.begin(self._bucket)
        hidden = self._model.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        cache.prompts_end()
        cache.place.fill_(self._held)
        slots = self._slots()
        self._room.slots.seen.fill_(float("-inf"))
        slots.seen[:, : self._held].masked_fill_(mask.bool(), 0.0)
        slots.positions.copy_(positions[:, -1] + 1)
        self._offer(1)
        draw(self._model.lm_head(hidden[:, -1]), slots, self._greedy)
        self._done = 1

    def _draw_next(self, several: int) -> None:
        self._offer(several)
        one = partial(step, self._model, self._room.cache, self._slots(), self._greedy)
        for _ in range(several):
            self._room.graphs.run((self._bucket, self._greedy), one)
        self._held, self._done = self._held + several, self._done + several

    def _offer(self, several: int) -> None:
        """To as many steps: their random numbers, and columns to write in."""
        self._room.slots.column.zero_()
        self._several = several
        if not self._greedy:
            uniforms = self._asked.uniforms[self._rows, self._done : self._done + several]
            self._slots().uniforms[:, :several] = uniforms.to(self._model.device)

    def _look(self) -> list[int]:
        """Take what was drawn since the last look; the rows whose responses go on."""
        slots, active, ended, added = self._slots(), [], 0, 0
        chosen, logprobs = (each[:, : self._several].tolist() for each in (slots.chosen, slots.logprobs))
        for row, number in enumerate(self._rows[: self._busy]):
            response = self._responses[number]
            if response.finished:
                continue
            added += response.add(chosen[row], logprobs[row], self._asked.stop_ids)
            ended += response.finished
            active += [] if response.finished else [row]
        self._asked.count.add(ended, added)
        return active

    def _settle(self, active: list[int], tokens: int) -> None:
        """Into the smallest bucket for the rows `active`, with as many tokens: another where fewer rows do, or more."""
        wanted, now = bucket(len(active), tokens, self._room.most.rows), self._bucket
        if wanted.rows == now.rows and wanted.tokens == now.tokens:
            return
        kept = _filled(active, wanted.rows)
        chosen = torch.tensor(kept, device=self._model.device)
        self._room.cache.move(chosen, wanted, self._held)
        for each in (slots := self._room.slots).tokens, slots.positions, slots.seen:
            each[: wanted.rows] = each.index_select(0, chosen)
        self._rows, self._busy, self._bucket = [self._rows[row] for row in kept], len(active), wanted

    def _slots(self) -> Slots:
        return self._room.slots.of(self._bucket)


def _filled(rows: Sequence[int], size: int) -> list[int]:
    """`rows`, and the first of them again and again: an idle row does what another does."""
    return [*rows, *[rows[0]] * (size - len(rows))]
