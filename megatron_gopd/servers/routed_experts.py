"""The experts that SGLang chose at each position, as it tells them: numbers of all layers, in base64.

Source: sglang/srt/state_capturer/routed_experts.py, 0.5.23.
"""

from __future__ import annotations

import base64
from typing import NamedTuple, Self

import numpy as np

from megatron_gopd.data.routed_experts import dtype_of
from megatron_gopd.mcore.architecture import Architecture

FLAG = "enable-return-routed-experts"
ITEM = np.dtype("<i4")  # of a reply


class Routers(NamedTuple):
    """Of a model with experts."""

    layers: int
    top_k: int
    experts: int

    @classmethod
    def of(cls, model: Architecture) -> Self | None:
        """None: a dense one."""
        return cls(model.layers, model.experts.per_token, model.experts.count) if model.experts else None

    def asked(self, first: int) -> dict:
        """What a request for a response asks for: choices from position `first` on."""
        return {"return_routed_experts": True, "routed_experts_start_len": first}

    def reply_bytes(self, positions: int) -> int:
        """That a reply may have, of so many."""
        return 4 * -(-positions * self.layers * self.top_k * ITEM.itemsize // 3) + 4

    def read(self, said: str | None, positions: int) -> np.ndarray:
        """[positions, layers, top_k] uint8 or int16.

        Raises ValueError: there are none, fewer or more, or such as no router chooses: a pipeline stage of a server
        tells 0 for every layer of the others.
        """
        if said is None:
            raise ValueError(
                f"no experts of its tokens, which rollout.replay_routing reads: start that server with --{FLAG}"
            )
        raw = base64.b64decode(said)  # its errors are ValueErrors
        if len(raw) != positions * self.layers * self.top_k * ITEM.itemsize:
            raise ValueError(
                f"{len(raw)} bytes of routed_experts for {positions} positions of {self.layers} layers with "
                f"{self.top_k} experts each; is it of student.model?"
            )
        chosen = np.frombuffer(raw, ITEM).reshape(positions, self.layers, self.top_k)
        if chosen.min(initial=0) < 0 or chosen.max(initial=0) >= self.experts:
            position, layer, rank = np.argwhere((chosen < 0) | (chosen >= self.experts))[0]
            number = chosen[position, layer, rank]
            raise ValueError(f"expert {number} of {self.experts} in position {position}, layer {layer}")
        chosen = chosen.astype(dtype_of(self.experts))
        for position, layer in _twice(chosen)[:1]:
            raise ValueError(f"an expert twice in position {position}, layer {layer}, which no router chooses")
        return chosen


def _twice(chosen: np.ndarray) -> np.ndarray:
    """[places, 2] where two of the top_k are the same; pair by pair, in a fraction of the time that sorting takes."""
    ranked = np.ascontiguousarray(np.moveaxis(chosen, -1, 0))  # [top_k, positions, layers]
    same = np.zeros(ranked.shape[1:], dtype=bool)
    for number, of_rank in enumerate(ranked):
        for other in ranked[:number]:
            same |= of_rank == other
    return np.argwhere(same)
