"""Where the job's code asks a tensor for values that fake tensors do not have: an answer for each such place."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.optimizer import clip_grads
from megatron.core.transformer.moe import token_dispatcher
from torch import Tensor

from megatron_gopd.config import Config
from megatron_gopd.kernels import chunks, head
from megatron_gopd.mcore import optimizer, settings, weights
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.attention import CausalAttention
from megatron_gopd.plan.judged import width
from megatron_gopd.plan.ledger import Ledger
from megatron_gopd.plan.lm_head import PlannedHead
from megatron_gopd.policies import distribution_portion, hidden_scorers, scorers, target_heads
from megatron_gopd.policies.hidden_scorers import HiddenScorers
from megatron_gopd.policies.hidden_states import Held, Piece
from megatron_gopd.policies.student import Student
from megatron_gopd.policies.token_table import TokenTable


@contextlib.contextmanager
def values_answered(ledger: Ledger) -> Iterator[None]:
    """Within the block: weights are not read, servers not asked, results not collected, experts drawn evenly."""
    dispatcher = token_dispatcher.MoEAlltoAllTokenDispatcher
    gather = token_dispatcher.gather_from_sequence_parallel_region
    patches = [
        mock.patch.object(weights, "load", lambda model, folder: None),
        mock.patch.object(scorers, "ServedScorer", lambda *_: None),
        mock.patch.object(dist, "all_gather_object", _others_are_alike),
        mock.patch.object(clip_grads, "l2_norm_impl", lambda *_: (torch.zeros(1), None)),
        mock.patch.object(TokenTable, "gather", _gather_nothing),
        mock.patch.object(head, "backend_for", lambda hidden: PlannedHead(ledger)),
        mock.patch.object(chunks, "TOKENS", chunks.GPU_TOKENS),
        mock.patch.object(chunks, "KEPT_BYTES", chunks.GPU_KEPT_BYTES),
        mock.patch.object(CausalAttention, "_from", _in_one_call),
        mock.patch.object(dispatcher, "dispatch_preprocess", _evenly(dispatcher.dispatch_preprocess)),
        mock.patch.object(token_dispatcher, "gather_from_sequence_parallel_region", _counts_are_alike(gather)),
        mock.patch.object(optimizer, "_sum_gradients", _as_part("gradients", ledger, optimizer._sum_gradients)),
        mock.patch.object(Student, "_step", _as_part("step", ledger, Student._step)),
        *_judges(),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _judges() -> list:
    """Scorers of hidden states: not held a second time, computed elsewhere, and fetched at once."""

    def fetch(held: Held, wanted: Tensor, tokens: int) -> Tensor:
        return held.values.new_empty(len(wanted), held.values.shape[1])

    return [
        mock.patch.object(HiddenScorers, "_hold", lambda *_: None),
        mock.patch.object(HiddenScorers, "_token", lambda self, judge: (width(judge) * self.dtype.itemsize, 1)),
        mock.patch.object(HiddenScorers, "_begin_piece", _computed_elsewhere),
        mock.patch.object(hidden_scorers, "shared_ids", _fewest_rows),
        mock.patch.object(target_heads, "lm_head", _unread_head),
        mock.patch.object(distribution_portion, "fetch", fetch),
    ]


def _computed_elsewhere(self: HiddenScorers, teacher: str, taught: list) -> Piece:
    held = {who: Held.nothing(width(judge), self.dtype) for who, judge in self.judges(teacher).items()}
    return Piece(teacher, taught, held)


def _fewest_rows(config: Config) -> int:
    """target_heads.shared_ids without a tokenizer, whose ids are a few less."""
    models = (settings.model for settings in (config.student, *config.scorers().values()))
    return min(Architecture.read(model).vocab_size for model in models)


def _unread_head(model: str) -> Tensor:
    architecture = Architecture.read(model)
    return torch.empty(architecture.vocab_size, architecture.hidden_size)


@contextlib.contextmanager
def layers_a_stage(layers: int) -> Iterator[None]:
    """Every model is as deep as its pipeline stages are many, times `layers`."""
    build = settings.transformer_config

    def transformer_config(architecture, layout, *args, **kwargs):
        return build(dataclasses.replace(architecture, layers=layers * layout.pp), layout, *args, **kwargs)

    with mock.patch.object(settings, "transformer_config", transformer_config):
        yield


def _as_part(name: str, ledger: Ledger, function):
    def counted(*args, **kwargs):
        with ledger.part(name):
            return function(*args, **kwargs)

    return counted


def _others_are_alike(objects: list, mine: object, group=None) -> None:
    objects[:] = [mine] * len(objects)


def _gather_nothing(table: TokenTable) -> dict[str, list[np.ndarray]]:
    """TokenTable.gather: its collective, and zeros."""
    dist.all_reduce(table._values)
    bounds = table._bounds
    empty = np.zeros(int(bounds[-1]), dtype=np.float32)
    rows = [empty[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]
    return dict.fromkeys(table.columns, rows)


def _in_one_call(self: CausalAttention, start: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """CausalAttention._from as a GPU's kernel does it, which has no masks and computes no block a second time."""
    end = start + query.shape[2]
    return F.scaled_dot_product_attention(query, key[:, :, :end], value[:, :, :end], scale=self.scale)


def _evenly(dispatch):
    def preprocess(self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor):
        return dispatch(self, hidden_states, even_routing(*routing_map.shape, self.config.moe_router_topk), probs)

    return preprocess


def even_routing(tokens: int, experts: int, per_token: int) -> Tensor:
    """[tokens, experts] bool: every token to `per_token` experts, every expert as many tokens, but for a rest."""
    first = torch.arange(tokens)[:, None] * per_token
    chosen = (first + torch.arange(per_token)) % experts
    return torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, True)


def _counts_are_alike(gather):
    """Every rank draws experts evenly, so what it gathers of the others' counts is its own."""

    def gathered(x: Tensor, *args, group=None, **kwargs):
        out = gather(x, *args, group=group, **kwargs)
        return out if x.is_floating_point() else x.repeat(group.size(), *[1] * (x.dim() - 1))

    return gathered
