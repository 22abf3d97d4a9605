"""Where the job's code asks a tensor for values that fake tensors do not have: an answer for each such place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.optimizer import clip_grads
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.transformer.moe import token_dispatcher
from torch import Tensor

from megatron_gopd.kernels import head
from megatron_gopd.mcore import weights
from megatron_gopd.plan.lm_head import PlannedHead
from megatron_gopd.policies import token_table


@contextlib.contextmanager
def installed(stage_input: list[int] | None = None) -> Iterator[None]:
    """Within the block: weights are not read, results not collected, experts drawn evenly, stages know their input."""
    with contextlib.ExitStack() as stack:
        for patch in _patches():
            stack.enter_context(patch)
        yield


_CURRENT: dict = {}


def use(ledger) -> None:
    _CURRENT["ledger"] = ledger


def set_stage_input(shape: list[int]) -> None:
    """[tokens of this rank, 1, hidden], what a pipeline stage receives of its neighbours."""
    _CURRENT["stage_input"] = shape


def _patches() -> list:
    dispatcher = token_dispatcher.MoEAlltoAllTokenDispatcher
    return [
        mock.patch.object(weights, "load", lambda model, folder: None),
        mock.patch.object(dist, "all_gather_object", _others_are_alike),
        mock.patch.object(clip_grads, "l2_norm_impl", lambda *_: (torch.zeros(1), None)),
        mock.patch.object(token_table.TokenTable, "gather", _gather_nothing),
        mock.patch.object(head, "backend_for", lambda hidden: PlannedHead(_CURRENT["ledger"])),
        mock.patch.object(P2PCommunicator, "_communicate_shapes", _known_shapes),
        mock.patch.object(dispatcher, "dispatch_preprocess", _evenly(dispatcher.dispatch_preprocess)),
        mock.patch.object(
            token_dispatcher,
            "gather_from_sequence_parallel_region",
            _counts_are_alike(token_dispatcher.gather_from_sequence_parallel_region),
        ),
    ]


def _others_are_alike(objects: list, mine: object, group=None) -> None:
    objects[:] = [mine] * len(objects)


def _gather_nothing(table) -> dict[str, list[np.ndarray]]:
    """TokenTable.gather: the collective, and zeros."""
    dist.all_reduce(table._values)
    bounds = table._bounds
    empty = np.zeros(int(bounds[-1]), dtype=np.float32)
    rows = [empty[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]
    return dict.fromkeys(table.columns, rows)


_exchange_shapes = P2PCommunicator._communicate_shapes


def _known_shapes(self, tensor_send_next, tensor_send_prev, recv_prev, recv_next):
    _exchange_shapes(self, tensor_send_next, tensor_send_prev, recv_prev, recv_next)
    nothing, shape = [0, 0, 0], _CURRENT["stage_input"]
    return (shape if recv_prev else nothing), (shape if recv_next else nothing)


def _evenly(dispatch):
    def preprocess(self, hidden_states: Tensor, routing_map: Tensor, probs: Tensor):
        return dispatch(self, hidden_states, even_routing(*routing_map.shape, self.config.moe_router_topk), probs)

    return preprocess


def even_routing(tokens: int, experts: int, per_token: int) -> Tensor:
    """[tokens, experts] bool: every token to `per_token` experts, every expert as many tokens, nearly."""
    first = torch.arange(tokens)[:, None] * per_token
    chosen = (first + torch.arange(per_token)) % experts
    return torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, chosen, True)


def _counts_are_alike(gather):
    """Every rank draws experts evenly, so what it gathers of the others' counts is its own."""

    def gathered(x: Tensor, *args, group=None, **kwargs):
        out = gather(x, *args, group=group, **kwargs)
        return out if x.is_floating_point() else x.repeat(group.size(), *[1] * (x.dim() - 1))

    return gathered
