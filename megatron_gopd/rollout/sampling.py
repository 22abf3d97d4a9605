"""Batched decoding of a transformers model with a KV cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import RoutedExperts
from megatron_gopd.rollout.growing_cache import growing_cache, has_windows
from megatron_gopd.rollout.threads import suited_threads
from megatron_gopd.runs.progress import Count

SHRINK = 0.9  # finished rows leave the batch once this share, or less, is still being decoded


@dataclass(frozen=True)
class Response:
    tokens: np.ndarray  # [response] int32
    logprobs: np.ndarray  # [response] float32, nats, under the sampling temperature
    finished: bool  # ended by a stop id, which is the last token
    versions: tuple[tuple[int, int], ...] = ()  # (weights, how many tokens they sampled), in order; (): the engine's
    ended_by_age: bool = False  # where it was, for the updates that it has seen
    routed_experts: RoutedExperts | None = None  # see Trajectory


class Growing:
    """A response that is being sampled."""

    def __init__(self):
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[tuple[int, int]] = []
        self.finished = False
        self.routed_experts: list[np.ndarray] = []  # of the first positions, as servers told them one after the other

    @property
    def routed(self) -> int:
        """Positions of prompt and response whose experts are known."""
        return sum(map(len, self.routed_experts))

    def add(self, tokens: Sequence[int], logprobs: Sequence[float], stop_ids: Collection[int]) -> int:
        """What was sampled, up to the first stop id; how many tokens that is."""
        last = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
        whole = len(tokens) if last is None else last + 1
        self.tokens += tokens[:whole]
        self.logprobs += logprobs[:whole]
        self.finished = last is not None
        return whole

    def response(self, *, ended_by_age: bool = False) -> Response:
        tokens, logprobs = np.array(self.tokens, dtype=np.int32), np.array(self.logprobs, dtype=np.float32)
        chosen = RoutedExperts.of(np.concatenate(self.routed_experts)) if self.routed_experts else None
        return Response(tokens, logprobs, self.finished, tuple(self.versions), ended_by_age, chosen)


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    temperature: float = 1.0,
    uniforms: np.ndarray | None = None,
    count: Count | None = None,
) -> list[Response]:
    """Sample one response to each prompt by inverse CDF, or decode greedily.

    Args:
        prompts: token ids of each prompt.
        uniforms: [prompts, max_tokens] numbers in [0, 1), one decides one token; None: the most likely token.
        count: told after every token how many responses it ended, and how many it belongs to.
    """
    count = count or Count(0)
    responses = [Growing() for _ in prompts]
    active = range(len(prompts))  # rows of the batch whose responses go on
    rows = np.arange(len(prompts))  # which response each row of the batch belongs to
    tokens, mask = left_padded(prompts, model.device)
    drawn = None if uniforms is None else torch.from_numpy(uniforms).to(model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache, windows = growing_cache(model.config), has_windows(model.config)
    with suited_threads(model) as suit:
        for step in range(max_tokens):
            suit(len(rows) if step else mask.numel())
            seen = mask if windows or not step else _added(mask, model.dtype)
            hidden = model.model(
                input_ids=tokens, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
            logprobs = (model.lm_head(hidden[:, -1]).float() / temperature).log_softmax(dim=-1)
            chosen = choose(logprobs, None if drawn is None else drawn[rows, step, None])
            _append([responses[row] for row in rows], chosen, logprobs, stop_ids)
            growing = len(active)
            active = [index for index, row in enumerate(rows) if not responses[row].finished]
            count.add(growing - len(active), growing)
            if not active:
                break
            if len(active) <= SHRINK * len(rows):
                kept = torch.tensor(active, device=model.device)
                cache.batch_select_indices(kept)
                rows, chosen, mask, positions = rows[active], chosen[kept], mask[kept], positions[kept]
            tokens, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    count.add(len(active), 0)  # cut short
    return [response.response() for response in responses]


@torch.inference_mode()
def logprobs(model: PreTrainedModel, rows: Sequence[Row]) -> list[np.ndarray]:
    """Log-prob of every response token at temperature 1, computed as `decode` would: [response] float32 a row, nats."""
    tokens, mask = left_padded([[*row.prompt_tokens, *row.response_tokens] for row in rows], model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = growing_cache(model.config)
    hidden = model.model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    sizes = [len(row.response_tokens) for row in rows]
    predicting = torch.cat([of_row[-size - 1 : -1] for of_row, size in zip(hidden, sizes, strict=True)])
    targets = torch.cat([of_row[-size:] for of_row, size in zip(tokens, sizes, strict=True)])
    law = model.lm_head(predicting).float().log_softmax(dim=-1)
    return [of_row.cpu().numpy() for of_row in law.gather(1, targets[:, None])[:, 0].split(sizes)]


def left_padded(prompts: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
    """Token ids, 0 on the left of the shorter ones, and which are a prompt's, 1 or 0: [prompts, longest] both."""
    width = max(map(len, prompts))
    tokens, mask = torch.zeros(2, len(prompts), width, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return tokens, mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, 1, 1, tokens] what attention adds to the scores of a new token: made once for all layers."""
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, float("-inf"))
    return added[:, None, None]


def choose(logprobs: Tensor, uniforms: Tensor | None) -> Tensor:
    """[rows] the token where the cumulative probability passes the uniform number; the likeliest without one.

    logprobs [rows, V], uniforms [rows, 1] float64.
    """
    if uniforms is None:
        return logprobs.argmax(dim=-1)
    cumulative = logprobs.double().exp().cumsum(dim=-1)  # float64: 150,000 float32 terms lose the tail
    threshold = uniforms * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logprobs.shape[1] - 1)


def _append(responses: list[Growing], chosen: Tensor, logprobs: Tensor, stop_ids: Sequence[int]) -> None:
    of_chosen = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    for response, token, logprob in zip(responses, chosen.tolist(), of_chosen, strict=True):
        if not response.finished:
            response.tokens.append(token)
            response.logprobs.append(logprob)
            response.finished = token in stop_ids
