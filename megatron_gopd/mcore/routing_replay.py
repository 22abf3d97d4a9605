"""Routing replay: a student's routers take the experts that the rollout engine chose, and weigh them themselves.

Megatron's own RouterReplay (megatron/core/transformer/moe/router_replay.py) keeps all routers of a process in one list,
the scorers' too, wants a choice for every position, padding included, and learns from its caller which micro-batch a
recomputation is of. Here the choices travel with the packed rows, which each layer is called with, again where it is
recomputed; a router asks for them where it would ask RouterReplay.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from megatron_gopd.config import Config
from megatron_gopd.data.packing import MicroBatch
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture

if TYPE_CHECKING:
    from megatron_gopd.mcore.model import Model


def check_replay(config: Config) -> None:
    """Raises UserError: there is nothing to replay."""
    model = config.student.model
    if config.rollout.replay_routing and Architecture.read(model).experts is None:
        raise UserError(f"rollout.replay_routing: student.model ({model}) is dense and routes nothing; leave it out")


class Replay:
    """Takes the place of a router's RouterReplay, for the layer that is being computed."""

    layer_number: int | None = None  # Megatron sets it
    chosen: Tensor | None = None  # [tokens, top_k], below 0 where the router is to choose; None: everywhere

    def get_replay_topk(
        self, scores: Tensor, topk: int, num_groups: int | None, group_topk: int | None, choose: Callable
    ) -> tuple[Tensor, Tensor]:
        """Scores and numbers of the experts of each token, [tokens, top_k]; scores [tokens, experts] are the router's
        own, so that its gradient is that of the choice."""
        values, own = choose(scores, topk, num_groups=num_groups, group_topk=group_topk)
        if self.chosen is None:
            return values, own
        taken = torch.where(self.chosen < 0, own, self.chosen.long())
        return scores.gather(1, taken), taken


def replay_routing(module: nn.Module) -> None:
    """Let every layer of a GPTModel with experts take the choices of the packed rows that it is called with."""
    for number, layer in enumerate(module.decoder.layers):
        layer.mlp.router.router_replay = replay = Replay()
        layer.register_forward_pre_hook(partial(_hand_over, replay, number), with_kwargs=True)


def of_stage(model: Model, micro_batch: MicroBatch, device: torch.device) -> Tensor | None:
    """[tokens, layers of this stage, top_k] of the tokens that this rank routes: its slice under sequence parallelism.
    None: nothing is known of the micro-batch."""
    chosen = micro_batch.routed_experts
    if chosen is None:
        return None
    if model.config.sequence_parallel:
        chosen = chosen.chunk(model.groups.tp.size())[model.groups.tp.rank()]
    first = model.layer_offset
    return chosen[:, first : first + len(model.module.decoder.layers)].to(device)


def _hand_over(replay: Replay, number: int, layer: nn.Module, args: tuple, kwargs: dict) -> None:
    routed = kwargs["packed_seq_params"].routed_experts
    replay.chosen = None if routed is None else routed[:, number]
