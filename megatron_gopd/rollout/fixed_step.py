"""A decoding step on tensors that stay where they are: nothing waits for the device, no shape depends on values."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_gopd.data.buckets import Bucket
from megatron_gopd.rollout.fixed_cache import FixedCache
from megatron_gopd.rollout.sampling import choose

EVERY = 16  # steps between two looks of the host at what was drawn


@dataclass(frozen=True)
class Slots:
    """What steps read, and where they write; of rows: the first ones of as many as there may be."""

    tokens: Tensor  # [rows] the last ones
    positions: Tensor  # [rows] theirs
    seen: Tensor  # [rows, tokens] 0 where attended to, else -inf
    uniforms: Tensor  # [rows, EVERY] float64, of the steps until the host looks
    chosen: Tensor  # [rows, EVERY] tokens drawn since it looked
    logprobs: Tensor  # [rows, EVERY] float32, nats
    column: Tensor  # [1] of the next one
    temperature: Tensor  # scalar

    @classmethod
    def made(cls, most: Bucket, dtype: torch.dtype, device: torch.device) -> Slots:
        """For buckets up to `most`."""
        tokens, positions = torch.zeros(2, most.rows, dtype=torch.long, device=device)
        seen = torch.zeros(most.rows, most.tokens, dtype=dtype, device=device)
        of_steps = {"size": (most.rows, EVERY), "device": device}
        return cls(
            tokens,
            positions,
            seen,
            torch.zeros(dtype=torch.float64, **of_steps),
            torch.zeros(dtype=torch.long, **of_steps),
            torch.zeros(dtype=torch.float32, **of_steps),
            torch.zeros(1, dtype=torch.long, device=device),
            torch.ones((), device=device),
        )

    def of(self, bucket: Bucket) -> Slots:
        """Views."""
        rows = {field.name: getattr(self, field.name)[: bucket.rows] for field in fields(self)[:-2]}
        return replace(self, **rows | {"seen": self.seen[: bucket.rows, : bucket.tokens]})


def step(model: PreTrainedModel, cache: FixedCache, slots: Slots, greedy: bool) -> None:
    """The last token of every row through the model, and the next one drawn."""
    slots.seen.index_fill_(1, cache.place, 0.0)
    hidden = model.model(
        input_ids=slots.tokens[:, None],
        attention_mask=slots.seen[:, None, None],
        position_ids=slots.positions[:, None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    cache.place.add_(1)
    slots.positions.add_(1)
    draw(model.lm_head(hidden[:, -1]), slots, greedy)


def draw(logits: Tensor, slots: Slots, greedy: bool) -> None:
    """[rows, V] -> the next token of every row, and its log-prob."""
    logprobs = (logits.float() / slots.temperature).log_softmax(dim=-1)
    uniforms = None if greedy else slots.uniforms.index_select(1, slots.column)
    chosen = choose(logprobs, uniforms)[:, None]
    slots.tokens.copy_(chosen[:, 0])
    slots.chosen.index_copy_(1, slots.column, chosen)
    slots.logprobs.index_copy_(1, slots.column, logprobs.gather(1, chosen))
    slots.column.add_(1)
